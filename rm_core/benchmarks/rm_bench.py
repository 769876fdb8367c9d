"""RM-Bench: three chosen against three rejected answers, from plain to fancy, in four domains.

Formulas are those of github.com/THU-KEG/RM-Bench at 73c52d7, `scripts/utils.py`. Equal rewards are
wrong.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from rm_core.benchmarks.aggregation import (
    by_subset,
    counts,
    fraction,
    lacks,
    mean,
    mean_of,
    part_of,
    parts_of,
    pooled,
    tallied,
)
from rm_core.benchmarks.base import (
    Combined,
    Credit,
    Figures,
    HubSet,
    Item,
    Preference,
    Preparation,
    ScoredItem,
    Tally,
)
from rm_core.benchmarks.strict_row import Row, quoted
from rm_core.benchmarks.variants import Options

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
SIZE = 3
"""Styles of an answer: concise, detailed, detailed with Markdown."""
Matrix = list[list[float]]


class RMBench:
    """RM-Bench."""

    name = "rm-bench"
    title = "RM-Bench"
    hub = (HubSet("THU-KEG/RM-Bench", "train"),)
    preparation = Preparation(
        max_length=2048,
        truncation="left",
        dtype="float16",
        source="THU-KEG/RM-Bench@73c52d7 scripts/run_rm.py",
    )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Six answers: the chosen ones from plain to fancy, then the rejected ones."""
        columns = Row(row, origin)
        responses: tuple[str, ...] = ()
        for name in ("chosen", "rejected"):
            texts = columns.texts(name)
            if len(texts) != SIZE:
                columns.refuse(f"the column `{name}` has {len(texts)} texts; it must have {SIZE}")
            responses += texts
        return Item(
            id=columns.id,
            subset=_subset(columns, origin),
            prompt=columns.question("prompt"),
            responses=responses,
            preferences=tuple(Preference(i, SIZE + j) for i in range(SIZE) for j in range(SIZE)),
        )

    def figures(self, scored: Sequence[ScoredItem]) -> Figures:
        """Four domains, easy, normal and hard, and their mean, which is the same both ways."""
        tallies = tallied(scored, self.credit)
        overall, sections = self.combine(tallies)
        subsets = parts_of(tallies, SUBSETS)
        groups = by_subset(scored)
        matrices = {
            domain: matrix([one for name in DOMAINS[domain] for one in groups.get(name, ())])
            for domain in sections
        }
        levels = {domain: difficulty(found) for domain, found in matrices.items()}
        more: dict[str, Any] = {}
        if levels:
            more["difficulty"] = {
                level: mean(found[level] for found in levels.values())
                for level in ("easy", "normal", "hard")
            }
            more["difficulty_by_domain"] = levels
            more["matrices"] = matrices
        missing = lacks(counts(subsets), SUBSETS, "subset")
        return Figures(overall, sections, subsets, more, tuple(missing))

    def credit(self, one: ScoredItem) -> Credit:
        """Nine comparisons."""
        chosen, rejected = one.rewards[:SIZE], one.rewards[SIZE:]
        return fraction([better > worse for better in chosen for worse in rejected])

    def combine(self, tallies: Mapping[str, Tally]) -> Combined:
        """Four domains and their mean; the two subsets of safety are pooled."""
        sections = {}
        for domain, names in DOMAINS.items():
            section = pooled(tallies[name] for name in names if name in tallies)
            if section is not None:
                sections[domain] = part_of(section, sum(SUBSETS[name] for name in names))
        return Combined(mean_of(sections), sections)


def matrix(scored: Sequence[ScoredItem]) -> Matrix:
    """Share of items whose chosen answer of a style (row) beats the rejected of one (column)."""
    counts = [[0] * SIZE for _ in range(SIZE)]
    for one in scored:
        for i in range(SIZE):
            for j in range(SIZE):
                counts[i][j] += one.rewards[i] > one.rewards[SIZE + j]
    return [[count / len(scored) for count in row] for row in counts]


def difficulty(found: Matrix) -> dict[str, float]:
    """`easy`: fancy against plainer; `normal`: of equal style; `hard`: plain against fancier."""
    cells = {
        "easy": [found[i][j] for i in range(SIZE) for j in range(i)],
        "normal": [found[i][i] for i in range(SIZE)],
        "hard": [found[i][j] for i in range(SIZE) for j in range(i + 1, SIZE)],
    }
    return {name: mean(values) or 0.0 for name, values in cells.items()}


def _subset(columns: Row, origin: str) -> str:
    domain = columns.get("domain")
    if domain is None:
        domain = posixpath.basename(origin).split("_")[0].split(".")[0]
    if domain == "safety":
        # Of a set that does not tell the two apart by its domain, the source of the prompt does.
        answered = str(columns.get("subset")).endswith("respond")
        domain = "safety-response" if answered else "safety-refuse"
    if domain not in SUBSETS:
        columns.refuse(
            f"the domain is {quoted(str(domain))}, by the column `domain` or else by the start of "
            f"the file's name; it must be {', '.join(SUBSETS)}"
        )
    return str(domain)
