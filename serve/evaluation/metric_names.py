"""Names and order of metrics, shared by files, tables and the catalogue."""

from __future__ import annotations

from rm_core.benchmarks.base import BenchmarkResult

OVERALL = "overall"
MEAN_OF_SECTIONS = "mean_of_sections"
DIFFICULTY = "difficulty"


def collect_metrics(result: BenchmarkResult) -> dict[str, float | None]:
    """Return the metrics of a table: overall first, then sections, then difficulties."""
    metrics: dict[str, float | None] = {OVERALL: result.overall}
    if MEAN_OF_SECTIONS in result.extra:
        metrics[MEAN_OF_SECTIONS] = result.extra[MEAN_OF_SECTIONS]
    metrics |= {name: section.score for name, section in result.sections.items()}
    metrics |= result.extra.get(DIFFICULTY, {})
    return metrics
