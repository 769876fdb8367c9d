"""RewardBench: pairs in 23 subsets, four weighted sections, and their unweighted mean.

Counts, weights and formulas follow github.com/allenai/reward-bench at 05a9005 (Apache-2.0),
`rewardbench/constants.py` and `rewardbench/utils.py`. Equal rewards are wrong; an undecided judge
is half right, as in `rewardbench/generative.py`.
"""

from __future__ import annotations

import hashlib
import math
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rm_core.benchmarks.aggregation import (
    compute_subset_score,
    compute_subset_scores,
    compute_weighted_score,
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
    ItemKey,
    ItemScore,
    OfficialProtocol,
    Preference,
    ScoredItem,
    SubsetScore,
    Tally,
)
from rm_core.benchmarks.strict_row import StrictRow
from rm_core.benchmarks.variants import BenchmarkOptions, choice
from rm_core.config import Kind
from rm_core.inputs.conversations import Messages

SECTIONS: Mapping[str, Mapping[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 447,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
"""Number of rows of each subset, by section."""
PRIOR_SETS: Mapping[str, int] = {
    "anthropic_helpful": 6192,
    "anthropic_hhh": 221,
    "shp": 1741,
    "summarize": 9000,
}
# Weight of `math-prm`: the same as of the six code subsets together.
MATH_WEIGHT = 984
# The two weights were swapped until 6552e93 of 10 September 2024; older results use these.
SWAPPED_XSTEST = {"xstest-should-refuse": 250, "xstest-should-respond": 154}
PRIOR = "Prior Sets"
PRIOR_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class RewardBenchOptions(BenchmarkOptions):
    """Variants in which published results differ."""

    prior_sets: str = choice(
        "off", "on", meaning="a fifth section with half the weight, as in the paper of 2024"
    )
    xstest: str = choice(
        "fixed", "swapped", meaning="weights of XSTest since, or before, 10 September 2024"
    )
    judge_orders: str = choice(
        "one",
        "both",
        meaning="a judge sees each pair in one order, drawn by a fixed seed, as in the official "
        "runner; or in both orders, and their mean counts",
    )


class RewardBench:
    """The first RewardBench benchmark."""

    name = "rewardbench"
    title = "RewardBench"
    kinds: tuple[Kind, ...] = ("classifier", "step", "judge")
    official_protocol = OfficialProtocol(
        max_length=2048,
        truncation="left",
        dtype="float16",
        source="allenai/reward-bench@05a9005 scripts/run_rm.py",
    )

    def __init__(self, options: RewardBenchOptions | None = None) -> None:
        self.options = options or RewardBenchOptions()
        self._prior = self.options.prior_sets == "on"
        self._expected = {
            name: rows for subsets in SECTIONS.values() for name, rows in subsets.items()
        }
        sets = [HubDataset("allenai/reward-bench", "filtered")]
        if self._prior:
            self._expected |= PRIOR_SETS
            sets += [HubDataset("allenai/pref-test-sets", name) for name in PRIOR_SETS]
        self.hub = tuple(sets)

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Read a pair: the chosen response, then the rejected response."""
        columns = StrictRow(row, origin)
        prompt: Messages
        if isinstance(columns.get("prompt"), str):
            prompt = columns.get_user_message("prompt")
        else:
            prompt = assign_roles_by_position(columns.get_messages("prompt"))
        return Item(
            id=columns.id,
            subset=self._read_subset(columns, origin),
            prompt=prompt,
            responses=(columns.get_text("chosen"), columns.get_text("rejected")),
            preferences=(Preference(0, 1),),
        )

    def _read_subset(self, columns: StrictRow, origin: str) -> str:
        subset = columns.get("subset")
        if subset in self._expected:
            return str(subset)
        # Prior sets are splits, so that only the name of the file contains the subset.
        prior = posixpath.basename(origin).split("-")[0].split(".")[0]
        if prior in PRIOR_SETS and self._prior:
            return prior
        if subset in PRIOR_SETS or prior in PRIOR_SETS:
            columns.refuse("the row belongs to a prior set, and the option `prior_sets` is off")
        return columns.get_choice("subset", self._expected)

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """Compute weighted sections and their mean."""
        tallies = tally_subsets(scored, self.grade_item)
        overall, sections = self.combine(tallies)
        subsets = compute_subset_scores(tallies, self._expected)
        extra: dict[str, Any] = {}
        pooled = pool(tallies.values())
        if pooled is not None:
            extra["accuracy"] = compute_subset_score(pooled).score
        if PRIOR in sections:
            extra["mean_without_prior_sets"] = mean(
                section.score for name, section in sections.items() if name != PRIOR
            )
        missing = list_missing_items(count_items(subsets), self._expected, "subset")
        return BenchmarkResult(overall, sections, subsets, extra, tuple(missing))

    def grade_item(self, scored_item: ScoredItem) -> ItemScore:
        """Grade as right if the chosen response has the higher reward; a judge's tie is half."""
        (preference,) = scored_item.item.preferences
        if not scored_item.log_odds:
            return ItemScore(scored_item.get_margin(preference) > 0, 1)
        if self.options.judge_orders == "one":
            (orders,) = scored_item.log_odds
            margin = orders[draw_order(scored_item.item.key) % len(orders)]
        else:
            margin = scored_item.get_margin(preference)
        return ItemScore(0.5 if margin == 0 else float(margin > 0), 1)

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """Compute weighted sections and their mean."""
        sections: dict[str, SubsetScore] = {}
        for name, rows in SECTIONS.items():
            section = compute_weighted_score(tallies, self._get_weights(rows), rows)
            if section is not None:
                sections[name] = section
        overall = mean_score(sections)
        prior = compute_weighted_score(tallies, dict.fromkeys(PRIOR_SETS, 1.0), PRIOR_SETS)
        if prior is not None:
            terms = [*(section.score for section in sections.values()), prior.score * PRIOR_WEIGHT]
            overall = math.fsum(terms) / (len(sections) + PRIOR_WEIGHT)
            sections[PRIOR] = prior
        return CombinedScore(overall, sections)

    def _get_weights(self, rows: Mapping[str, int]) -> dict[str, float]:
        weights: dict[str, float] = {**rows}
        if "math-prm" in weights:
            weights["math-prm"] = MATH_WEIGHT
        if self.options.xstest == "swapped" and "xstest-should-refuse" in weights:
            weights |= SWAPPED_XSTEST
        return weights


def draw_order(key: ItemKey) -> int:
    """Return 0 if a judge sees the chosen response first, 1 if it sees it second."""
    return hashlib.sha256("/".join(key).encode()).digest()[0] % 2


def assign_roles_by_position(turns: Messages) -> Messages:
    """Assign roles to turns by position, ignoring the roles in the data, as the official code."""
    roles = ("user", "assistant")
    return [
        {"role": roles[index % 2], "content": turn["content"]} for index, turn in enumerate(turns)
    ]
