"""ProcessBench: find the first wrong step of a solution, or that there is none.

The rules follow the paper, arXiv:2412.06559v4, section 4.1. A step is judged wrong if its reward is
not above a threshold. For models that give rewards instead of labels, the threshold is the one with
the best F1 on GSM8K, also for the other subsets.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from rm_core.benchmarks.aggregation import (
    compute_subset_score,
    group_by_subset,
    list_missing_items,
    mean_score,
    tally,
)
from rm_core.benchmarks.base import (
    BenchmarkResult,
    HubDataset,
    Item,
    ItemScore,
    OfficialProtocol,
    ScoredItem,
    SubsetScore,
)
from rm_core.benchmarks.strict_row import StrictRow, describe_value
from rm_core.benchmarks.variants import BenchmarkOptions, choice
from rm_core.config import Kind

NO_ERROR = -1
"""Label of a solution without a wrong step."""
CALIBRATION = "gsm8k"
"""Subset on which the threshold is chosen."""
TITLES: Mapping[str, str] = {
    "gsm8k": "GSM8K",
    "math": "MATH",
    "olympiadbench": "OlympiadBench",
    "omnimath": "Omni-MATH",
}
"""Section by subset."""
COUNTS: Mapping[str, int] = {
    "GSM8K/error": 207,
    "GSM8K/correct": 193,
    "MATH/error": 594,
    "MATH/correct": 406,
    "OlympiadBench/error": 661,
    "OlympiadBench/correct": 339,
    "Omni-MATH/error": 759,
    "Omni-MATH/correct": 241,
}
"""Number of solutions with and without a wrong step."""
_HALVES = ("error", "correct")


@dataclass(frozen=True, slots=True)
class ProcessBenchOptions(BenchmarkOptions):
    """Variants in which published results differ."""

    threshold: str = choice(
        CALIBRATION,
        "subset",
        accepts_number=True,
        meaning="reward up to which a step is judged wrong: the one with the best F1 on GSM8K, the "
        "best one of each subset, or a number, such as 0.5 for a model that gives probabilities",
    )


class ThresholdRange(NamedTuple):
    """Thresholds with which a solution is judged as labeled: from `low`, below `high`."""

    low: float
    high: float


class ProcessBench:
    """The ProcessBench benchmark."""

    name = "processbench"
    title = "ProcessBench"
    kinds: tuple[Kind, ...] = ("step",)
    hub = tuple(HubDataset("Qwen/ProcessBench", subset) for subset in TITLES)
    official_protocol = OfficialProtocol(
        max_length=None,
        truncation="error",
        dtype="bfloat16",
        source="arXiv:2412.06559v4, section 4.1",
    )

    def __init__(self, options: ProcessBenchOptions | None = None) -> None:
        self.options = options or ProcessBenchOptions()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Read a solution; the responses are its steps."""
        columns = StrictRow(row, origin)
        steps = columns.get_texts("steps")
        label = columns.get("label")
        if label not in range(NO_ERROR, len(steps)):
            columns.refuse(
                f"the column `label` is {describe_value(label)}; it must be the index of the first "
                f"of the {len(steps)} steps that is wrong, from 0, or -1 if none is"
            )
        return Item(
            id=columns.id,
            subset=_read_subset(columns, origin),
            prompt=columns.get_user_message("problem"),
            responses=steps,
            preferences=(),
            metadata={"label": int(label)},
        )

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """Compute F1 of four subsets, and their unweighted mean.

        The subsets of the result are the solutions with a wrong step and those without, each with
        its accuracy. `thresholds` are in `extra`.
        """
        groups = group_by_subset(scored)
        thresholds = self._choose_thresholds(groups)
        subsets: dict[str, SubsetScore] = {}
        sections: dict[str, SubsetScore] = {}
        for subset, threshold in thresholds.items():
            title = TITLES[subset]
            halves = _grade(groups[subset], threshold)
            for name, item_scores in halves.items():
                if item_scores:
                    key = f"{title}/{name}"
                    subsets[key] = compute_subset_score(tally(item_scores), COUNTS[key])
            if all(halves.values()):
                error, correct = (subsets[f"{title}/{name}"].score for name in halves)
                expected = COUNTS[f"{title}/error"] + COUNTS[f"{title}/correct"]
                f1 = compute_f1(error, correct)
                sections[title] = SubsetScore(f1, len(groups[subset]), expected)
        counts = Counter(f"{TITLES[one.item.subset]}/{_get_half(one.item)}" for one in scored)
        missing = [
            *self._explain_missing_f1(counts, sections),
            *list_missing_items(counts, COUNTS, "subset"),
        ]
        extra = {"thresholds": {TITLES[name]: value for name, value in thresholds.items()}}
        return BenchmarkResult(
            mean_score(sections), sections, subsets, extra if thresholds else {}, tuple(missing)
        )

    def grade_items(self, scored: Sequence[ScoredItem]) -> list[ItemScore]:
        """Grade each solution as right if it is judged as labeled; 0 of 0 without a threshold."""
        thresholds = self._choose_thresholds(group_by_subset(scored))
        return [
            _grade_item(one, thresholds[one.item.subset])
            if one.item.subset in thresholds
            else ItemScore(0, 0)
            for one in scored
        ]

    def _explain_missing_f1(
        self, counts: Mapping[str, int], sections: Mapping[str, SubsetScore]
    ) -> list[str]:
        """Return phrases that say why subsets with solutions have no F1."""
        halves = "solutions with and without a wrong step"
        titles = [
            title
            for title in TITLES.values()
            if title not in sections and any(counts[f"{title}/{half}"] for half in _HALVES)
        ]
        option = self.options.threshold
        if option == "subset":
            return [
                f"F1 and the threshold of {title}: they need {halves}; give a threshold with "
                "--variant threshold=NUMBER"
                for title in titles
            ]
        if titles and option == CALIBRATION and not sections:
            error, correct = (counts[f"{TITLES[CALIBRATION]}/{half}"] for half in _HALVES)
            return [
                f"the threshold: it is chosen on GSM8K, which has {error} solutions with a wrong "
                f"step and {correct} without here; give one with --variant threshold=NUMBER"
            ]
        return [f"F1 of {title}: it needs {halves}" for title in titles]

    def _choose_thresholds(self, groups: Mapping[str, Sequence[ScoredItem]]) -> dict[str, float]:
        """Return the threshold of each subset that has items, unless it cannot be chosen."""
        option = self.options.threshold
        chosen: dict[str, float | None]
        if option == "subset":
            chosen = {subset: choose_threshold(group) for subset, group in groups.items()}
        elif option == CALIBRATION:
            chosen = dict.fromkeys(groups, choose_threshold(groups.get(CALIBRATION, ())))
        else:
            chosen = dict.fromkeys(groups, float(option))
        return {name: chosen[name] for name in TITLES if chosen.get(name) is not None}  # type: ignore[misc]


def find_first_error(rewards: Sequence[float], threshold: float) -> int:
    """Return the index of the first step whose reward is not above a threshold, or -1."""
    return next((i for i, reward in enumerate(rewards) if reward <= threshold), NO_ERROR)


def compute_f1(error: float, correct: float) -> float:
    """Return the harmonic mean of the accuracies on solutions with and without a wrong step."""
    return 2 * error * correct / (error + correct) if error + correct else 0.0


def choose_threshold(scored: Iterable[ScoredItem]) -> float | None:
    """Return the threshold with the best F1, the lowest of equally good ones.

    Thresholds between two neighboring rewards judge equally; the middle represents them. None
    unless there are solutions with and without a wrong step.
    """
    ranges: dict[bool, list[ThresholdRange]] = {True: [], False: []}
    for one in scored:
        label = one.item.metadata["label"]
        ranges[label == NO_ERROR].append(find_threshold_range(one.rewards, label))
    if not all(ranges.values()):
        return None
    halves = [_CorrectCounter(ranges[without_error]) for without_error in (False, True)]
    ends = sorted({end for half in halves for end in half.ends if math.isfinite(end)})
    best_f1, best = -1.0, ends[0]
    for start, end in pairwise([*ends, math.inf]):
        f1 = compute_f1(*(half.compute_accuracy(start) for half in halves))
        if f1 > best_f1:
            middle = (start + end) / 2
            best_f1, best = f1, middle if middle < end else start
    return best


def find_threshold_range(rewards: Sequence[float], label: int) -> ThresholdRange:
    """Return the thresholds with which a solution is judged as labeled; the range may be empty."""
    if label == NO_ERROR:
        return ThresholdRange(-math.inf, min(rewards))
    return ThresholdRange(rewards[label], min(rewards[:label], default=math.inf))


class _CorrectCounter:
    """Share of solutions that are judged as labeled, by threshold."""

    def __init__(self, ranges: Sequence[ThresholdRange]) -> None:
        self._lows = sorted(one.low for one in ranges if one.low < one.high)
        self._highs = sorted(one.high for one in ranges if one.low < one.high)
        self._num_ranges = len(ranges)

    @property
    def ends(self) -> list[float]:
        """Thresholds at which the share may change."""
        return [*self._lows, *self._highs]

    def compute_accuracy(self, threshold: float) -> float:
        """Return the share of ranges that contain a threshold."""
        begun = bisect_right(self._lows, threshold)
        return (begun - bisect_right(self._highs, threshold)) / self._num_ranges


def _grade(scored: Iterable[ScoredItem], threshold: float) -> dict[str, list[ItemScore]]:
    """Return whether each solution is judged as labeled: those with an error, those without."""
    halves: dict[str, list[ItemScore]] = {half: [] for half in _HALVES}
    for one in scored:
        halves[_get_half(one.item)].append(_grade_item(one, threshold))
    return halves


def _get_half(item: Item) -> str:
    return "correct" if item.metadata["label"] == NO_ERROR else "error"


def _grade_item(one: ScoredItem, threshold: float) -> ItemScore:
    return ItemScore(find_first_error(one.rewards, threshold) == one.item.metadata["label"], 1)


def _read_subset(columns: StrictRow, origin: str) -> str:
    """Return the subset by the beginning of the id, or else by the name of the file."""
    for name in (columns.id, origin.rsplit("/", 1)[-1]):
        subset = re.split(r"[-_.]", name.casefold())[0]
        if subset in TITLES:
            return subset
    columns.refuse(
        f"the subset is unknown; the id or the name of the file must start with {', '.join(TITLES)}"
    )
