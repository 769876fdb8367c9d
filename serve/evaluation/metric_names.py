"""Names of figures, the same in files, tables and the catalogue, and their order."""

from __future__ import annotations

from rm_core.benchmarks.base import BenchmarkResult

OVERALL = "overall"
MEAN_OF_SECTIONS = "mean_of_sections"
DIFFICULTY = "difficulty"


def collect_metrics(result: BenchmarkResult) -> dict[str, float | None]:
    """The figures that a table shows: overall first, then sections, then difficulties."""
    named: dict[str, float | None] = {OVERALL: result.overall}
    if MEAN_OF_SECTIONS in result.extra:
        named[MEAN_OF_SECTIONS] = result.extra[MEAN_OF_SECTIONS]
    named |= {name: part.score for name, part in result.sections.items()}
    named |= result.extra.get(DIFFICULTY, {})
    return named
