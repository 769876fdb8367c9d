"""RM-Bench: three chosen against three rejected answers, from plain to fancy, in four domains.

Formulas are those of github.com/THU-KEG/RM-Bench at 73c52d7, `scripts/utils.py`. Equal rewards are
wrong.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from rm_core.benchmarks.aggregation import (
    compute_subset_score,
    compute_subset_scores,
    count_items,
    grade_comparisons,
    group_by_subset,
    list_missing_items,
    mean,
    mean_score,
    pool,
    tally_subsets,
)
from rm_core.benchmarks.base import (
    BenchmarkResult,
    CombinedScore,
    HubDataset,
    Item,
    ItemScore,
    OfficialProtocol,
    Preference,
    ScoredItem,
    Tally,
)
from rm_core.benchmarks.strict_row import StrictRow, quote
from rm_core.benchmarks.variants import BenchmarkOptions

SUBSETS: Mapping[str, int] = {
    "chat": 129,
    "math": 529,
    "code": 228,
    "safety-refuse": 284,
    "safety-response": 157,
}
DOMAINS: Mapping[str, tuple[str, ...]] = {
    "chat": ("chat",),
    "math": ("math",),
    "code": ("code",),
    "safety": ("safety-refuse", "safety-response"),
}
NUM_STYLES = 3
"""Styles of an answer: concise, detailed, detailed with Markdown."""
Matrix = list[list[float]]


class RMBench:
    """RM-Bench."""

    name = "rm-bench"
    title = "RM-Bench"
    hub = (HubDataset("THU-KEG/RM-Bench", "train"),)
    official_protocol = OfficialProtocol(
        max_length=2048,
        truncation="left",
        dtype="float16",
        source="THU-KEG/RM-Bench@73c52d7 scripts/run_rm.py",
    )

    def __init__(self, options: BenchmarkOptions | None = None) -> None:
        self.options = options or BenchmarkOptions()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Six answers: the chosen ones from plain to fancy, then the rejected ones."""
        columns = StrictRow(row, origin)
        responses: tuple[str, ...] = ()
        for name in ("chosen", "rejected"):
            texts = columns.get_texts(name)
            if len(texts) != NUM_STYLES:
                columns.refuse(
                    f"the column `{name}` has {len(texts)} texts; it must have {NUM_STYLES}"
                )
            responses += texts
        return Item(
            id=columns.id,
            subset=_read_subset(columns, origin),
            prompt=columns.get_user_message("prompt"),
            responses=responses,
            preferences=tuple(
                Preference(i, NUM_STYLES + j) for i in range(NUM_STYLES) for j in range(NUM_STYLES)
            ),
        )

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """Four domains, easy, normal and hard, and their mean, which is the same both ways."""
        tallies = tally_subsets(scored, self.grade_item)
        overall, sections = self.combine(tallies)
        subsets = compute_subset_scores(tallies, SUBSETS)
        groups = group_by_subset(scored)
        matrices = {
            domain: compute_matrix(
                [one for name in DOMAINS[domain] for one in groups.get(name, ())]
            )
            for domain in sections
        }
        levels = {domain: compute_difficulty(found) for domain, found in matrices.items()}
        more: dict[str, Any] = {}
        if levels:
            more["difficulty"] = {
                level: mean(found[level] for found in levels.values())
                for level in ("easy", "normal", "hard")
            }
            more["difficulty_by_domain"] = levels
            more["matrices"] = matrices
        missing = list_missing_items(count_items(subsets), SUBSETS, "subset")
        return BenchmarkResult(overall, sections, subsets, more, tuple(missing))

    def grade_item(self, one: ScoredItem) -> ItemScore:
        """Nine comparisons."""
        chosen, rejected = one.rewards[:NUM_STYLES], one.rewards[NUM_STYLES:]
        return grade_comparisons([better > worse for better in chosen for worse in rejected])

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """Four domains and their mean; the two subsets of safety are pooled."""
        sections = {}
        for domain, names in DOMAINS.items():
            section = pool(tallies[name] for name in names if name in tallies)
            if section is not None:
                sections[domain] = compute_subset_score(
                    section, sum(SUBSETS[name] for name in names)
                )
        return CombinedScore(mean_score(sections), sections)


def compute_matrix(scored: Sequence[ScoredItem]) -> Matrix:
    """Share of items whose chosen answer of a style (row) beats the rejected of one (column)."""
    counts = [[0] * NUM_STYLES for _ in range(NUM_STYLES)]
    for one in scored:
        for i in range(NUM_STYLES):
            for j in range(NUM_STYLES):
                counts[i][j] += one.rewards[i] > one.rewards[NUM_STYLES + j]
    return [[count / len(scored) for count in row] for row in counts]


def compute_difficulty(matrix: Matrix) -> dict[str, float]:
    """`easy`: fancy against plainer; `normal`: of equal style; `hard`: plain against fancier."""
    cells = {
        "easy": [matrix[i][j] for i in range(NUM_STYLES) for j in range(i)],
        "normal": [matrix[i][i] for i in range(NUM_STYLES)],
        "hard": [matrix[i][j] for i in range(NUM_STYLES) for j in range(i + 1, NUM_STYLES)],
    }
    return {name: mean(values) or 0.0 for name, values in cells.items()}


def _read_subset(columns: StrictRow, origin: str) -> str:
    domain = columns.get("domain")
    if domain is None:
        domain = posixpath.basename(origin).split("_")[0].split(".")[0]
    if domain == "safety":
        # Of a set that does not tell the two apart by its domain, the source of the prompt does.
        answered = str(columns.get("subset")).endswith("respond")
        domain = "safety-response" if answered else "safety-refuse"
    if domain not in SUBSETS:
        columns.refuse(
            f"the domain is {quote(str(domain))}, by the column `domain` or else by the start of "
            f"the file's name; it must be {', '.join(SUBSETS)}"
        )
    return str(domain)
