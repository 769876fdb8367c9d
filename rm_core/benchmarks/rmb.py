"""RMB: pairs and best-of-n groups, for helpfulness and for harmlessness.

The formulas follow github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark at 2be3180. The best answer must
beat every other answer of its group; equal rewards are wrong. Within a section every item has the
same weight, regardless of its scenario.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rm_core.benchmarks.aggregation import (
    compute_subset_score,
    compute_subset_scores,
    count_items,
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
from rm_core.benchmarks.strict_row import StrictRow
from rm_core.benchmarks.variants import BenchmarkOptions
from rm_core.config import Kind
from rm_core.text import quote

SECTIONS: Mapping[str, int] = {
    "pairwise/helpfulness": 10067,
    "pairwise/harmlessness": 7064,
    "best-of-n/helpfulness": 2109,
    "best-of-n/harmlessness": 1677,
}
_KINDS = {"pairwise_set": "pairwise", "bon_set": "best-of-n"}
_PATH = re.compile(
    r"(?:^|/)(Pairwise_set|BoN_set)/(Helpfulness|Harmlessness)(?=/|$)", re.IGNORECASE
)


class RMB:
    """The RMB benchmark."""

    name = "rmb"
    title = "RMB"
    kinds: tuple[Kind, ...] = ("classifier", "step", "judge")
    hub: tuple[HubDataset, ...] = ()  # The data is published on GitHub only.
    official_protocol = OfficialProtocol(
        max_length=2048,
        truncation="left",
        dtype="float16",
        source="Zhou-Zoey/RMB-Reward-Model-Benchmark@2be3180",
    )

    def __init__(self, options: BenchmarkOptions | None = None) -> None:
        self.options = options or BenchmarkOptions()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Read a pair or a group: the better answer, then the other answers."""
        is_group = isinstance(row, Mapping) and row.get("bon_best") is not None
        columns = StrictRow(row, origin, "bon_uid" if is_group else "pair_uid")
        path = _read_path(columns, origin)
        if is_group:
            others = columns.get_nested_texts("loser_list", "answer")
            responses = (columns.get_text("bon_best.answer"), *others)
        else:
            responses = (columns.get_text("chosen.answer"), columns.get_text("reject.answer"))
        if _parse_section(path).startswith("pairwise") == is_group:
            columns.refuse(f"the row is a {'group' if is_group else 'pair'}, but its set is {path}")
        return Item(
            id=columns.id,
            subset=path,
            prompt=columns.get_messages("conversation_input"),
            responses=responses,
            preferences=tuple(Preference(0, other) for other in range(1, len(responses))),
        )

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """Compute four sections and their unweighted mean; scenarios are the subsets."""
        tallies = tally_subsets(scored, self.grade_item)
        overall, sections = self.combine(tallies)
        means = {
            kind: mean(section.score for name, section in sections.items() if name.startswith(kind))
            for kind in _KINDS.values()
        }
        extra = {"means": {kind: value for kind, value in means.items() if value is not None}}
        missing = list_missing_items(count_items(sections), SECTIONS, "section")
        return BenchmarkResult(
            overall, sections, compute_subset_scores(tallies, {}), extra, tuple(missing)
        )

    def grade_item(self, scored_item: ScoredItem) -> ItemScore:
        """Grade as right if the first answer is better than every other answer."""
        margins = [scored_item.get_margin(pair) for pair in scored_item.item.preferences]
        return ItemScore(min(margins) > 0, 1)

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """Compute four sections, each pooled over its scenarios, and their unweighted mean."""
        sections = {}
        for name, expected in SECTIONS.items():
            section = pool(
                scenario for path, scenario in tallies.items() if _parse_section(path) == name
            )
            if section is not None:
                sections[name] = compute_subset_score(section, expected)
        return CombinedScore(mean_score(sections), sections)


def _read_path(columns: StrictRow, origin: str) -> str:
    """Return the path of the row's scenario, starting with the name of its set."""
    category = columns.get("category_path")
    path = category if isinstance(category, str) and category else origin.rsplit(".", 1)[0]
    match = _PATH.search(path)
    if match is None:
        columns.refuse(
            f"the scenario is {quote(path)}, from the column `category_path` or else from the "
            "file's path; it must contain Pairwise_set/ or BoN_set/, then Helpfulness or "
            "Harmlessness"
        )
    return path[match.start(1) :]


def _parse_section(path: str) -> str:
    match = _PATH.match(path)
    assert match is not None
    return f"{_KINDS[match[1].casefold()]}/{match[2].casefold()}"
