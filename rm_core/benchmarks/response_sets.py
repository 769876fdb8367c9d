"""Best of n on any prompts with several responses, each right or wrong.

Rows are those of RMB's best-of-n sets, or have `id`, `prompt`, `responses` and `correct`. With a
step model, each way to combine the rewards of steps has its own curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rm_core.benchmarks.aggregation import (
    compute_subset_score,
    compute_subset_scores,
    group_by_subset,
    mean,
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
    ScoredItem,
    Tally,
)
from rm_core.benchmarks.best_of_n import (
    CURVE_SIZES,
    Candidates,
    compute_curve,
    compute_expected_best,
    compute_majority,
)
from rm_core.benchmarks.rmb import RMB
from rm_core.benchmarks.strict_row import StrictRow
from rm_core.benchmarks.variants import BenchmarkOptions, choice
from rm_core.config import Kind
from rm_core.results import AGGREGATIONS, Aggregation, aggregate

_SIZES = tuple(sorted({*range(1, 9), *CURVE_SIZES}))
_REWARD = "reward"


@dataclass(frozen=True, slots=True)
class BestOfNOptions(BenchmarkOptions):
    """Variants of the computation."""

    aggregation: str = choice(
        *AGGREGATIONS,
        meaning="how the rewards of a step model's steps become the reward of a response in the "
        "overall score; the curves show all of them",
    )


class BestOfN:
    """Best of n on prompts of the user."""

    name = "best-of-n"
    title = "Best of n"
    kinds: tuple[Kind, ...] = ("classifier", "step")
    hub: tuple[HubDataset, ...] = ()  # The user gives the data.
    official_protocol = OfficialProtocol(
        max_length=None,
        truncation="error",
        dtype="bfloat16",
        source="none: the data is the user's",
    )

    def __init__(self, options: BestOfNOptions | None = None) -> None:
        self.options = options or BestOfNOptions()
        self._rmb = RMB()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Read the responses and which of them are right."""
        if isinstance(row, Mapping) and row.get("bon_best") is not None:
            item = self._rmb.read(row, origin)
            truth = (1.0, *(0.0 for _ in item.responses[1:]))
            metadata: dict[str, Any] = {"truth": truth, "answers": None}
            return Item(item.id, item.subset, item.prompt, item.responses, (), metadata)
        columns = StrictRow(row, origin)
        responses = columns.get_texts("responses")
        lists: dict[str, Sequence[Any]] = {"correct": columns.get_list("correct")}
        if columns.get("answers") is not None:
            lists["answers"] = columns.get_list("answers")
        for name, values in lists.items():
            if len(values) != len(responses):
                columns.refuse(
                    f"the column `{name}` has {len(values)} items for {len(responses)} responses; "
                    "it must have one for each"
                )
        truth = tuple(columns.to_number(value, "correct") for value in lists["correct"])
        answers = lists.get("answers")
        subset = columns.get("subset")
        has_messages = isinstance(columns.get("prompt"), list | tuple)
        read_prompt = columns.get_messages if has_messages else columns.get_user_message
        return Item(
            id=columns.id,
            subset=subset if isinstance(subset, str) and subset else "all",
            prompt=read_prompt("prompt"),
            responses=responses,
            preferences=(),
            metadata={
                "truth": truth,
                "answers": answers
                and [None if answer is None else str(answer) for answer in answers],
            },
        )

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """Compute the share of prompts whose response with the highest reward is right.

        The sections are the subsets. `best_of_n`, in `extra`, has the curves: by reward, or by each
        aggregation of a step model's rewards; `best` is pass@n, and `majority` votes on `answers`.
        """
        tallies = tally_subsets(scored, self.grade_item)
        overall, sections = self.combine(tallies)
        extra: dict[str, Any] = {}
        if scored:
            groups = {"overall": scored, **group_by_subset(scored)}
            curves = {name: _compute_curves(group) for name, group in groups.items()}
            if len(sections) == 1:
                del curves[next(iter(sections))]
            extra["accuracy"] = {
                name: mean(_select(one, name) for one in scored) for name in _list_ways(scored)
            }
            extra["best_of_n"] = curves
        missing = () if scored else ("rewards: none",)
        return BenchmarkResult(
            overall, sections, compute_subset_scores(tallies, {}), extra, missing
        )

    def grade_item(self, scored_item: ScoredItem) -> ItemScore:
        """Grade by the truth of the response with the highest reward; equal rewards share."""
        way = self.options.aggregation if scored_item.step_rewards else _REWARD
        return ItemScore(_select(scored_item, way), 1)

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """Compute the share of all prompts, and of those of each subset."""
        pooled = pool(tallies.values())
        overall = compute_subset_score(pooled).score if pooled else None
        return CombinedScore(overall, compute_subset_scores(tallies, {}))


def _list_ways(scored: Sequence[ScoredItem]) -> tuple[str, ...]:
    """Return the names of the rewards by which a response can be selected."""
    return AGGREGATIONS if all(one.step_rewards for one in scored) else (_REWARD,)


def _get_rewards(scored_item: ScoredItem, way: str) -> Sequence[float]:
    if way == _REWARD:
        return scored_item.rewards
    aggregation: Aggregation = way  # type: ignore[assignment]
    return [aggregate(rewards, aggregation) for rewards in scored_item.step_rewards]


def _select(scored_item: ScoredItem, way: str) -> float:
    """Return the expected truth of the response with the highest reward among all responses."""
    rewards = _get_rewards(scored_item, way)
    return compute_expected_best(rewards, scored_item.item.metadata["truth"], len(rewards))


def _compute_curves(scored: Sequence[ScoredItem]) -> dict[str, Any]:
    """Return the curve of each way to select, of the majority, and of the bounds."""
    truths = [one.item.metadata["truth"] for one in scored]
    curves: dict[str, Any] = {}
    bounds: dict[str, Any] = {}
    for way in _list_ways(scored):
        candidates = [
            Candidates(_get_rewards(one, way), truth)
            for one, truth in zip(scored, truths, strict=True)
        ]
        bounds = compute_curve(candidates, _SIZES)
        curves[way] = bounds.pop(_REWARD)
    sizes = bounds["n"]
    answers = [one.item.metadata["answers"] for one in scored]
    if all(answers):
        majorities = [
            compute_majority(texts, truth, sizes)
            for texts, truth in zip(answers, truths, strict=True)
        ]
        curves["majority"] = [
            math.fsum(values) / len(values) for values in zip(*majorities, strict=True)
        ]
    return {"n": sizes, **curves, "best": bounds["best"], "worst": bounds["worst"]}
