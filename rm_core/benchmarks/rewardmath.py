"""RewardMATH: one right solution of a problem of MATH against nine wrong ones.

The rules follow github.com/kimsh0507/RewardMATH_official at cd599e8, `src/evaluation/eval.py` and
`src/prompts.py`: the right solution must have a higher reward than every other one, equal rewards
are wrong, and the steps of a solution are its lines. Published rows have one solution each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rm_core.benchmarks.aggregation import (
    compute_subset_score,
    compute_subset_scores,
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
    Preference,
    ScoredItem,
    Tally,
)
from rm_core.benchmarks.strict_row import StrictRow
from rm_core.benchmarks.variants import BenchmarkOptions
from rm_core.config import Kind
from rm_core.errors import BenchmarkDataError

NUM_PROBLEMS = 483
NUM_WRONG = 9
RIGHT_SOURCE = "human_to_GPT-4"
"""Value of `solution_reference` of the right solutions."""
_TYPES = ("chosen", "rejected")


class RewardMATH:
    """The RewardMATH benchmark."""

    name = "rewardmath"
    title = "RewardMATH"
    kinds: tuple[Kind, ...] = ("classifier", "step")
    hub: tuple[HubDataset, ...] = (HubDataset("RewardMATH/RewardMATH", "train"),)
    official_protocol = OfficialProtocol(
        max_length=2048,
        truncation="left",
        dtype="bfloat16",
        source="kimsh0507/RewardMATH_official@cd599e8 src/inference_reward.py",
    )

    def __init__(self, options: BenchmarkOptions | None = None) -> None:
        self.options = options or BenchmarkOptions()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Read one solution; `join` adds it to the others of the problem."""
        columns = StrictRow(row, origin, "problem_id")
        subject = columns.get("subject")
        is_right = columns.get_choice("solution_type", _TYPES) == _TYPES[0]
        return Item(
            id=columns.id,
            subset=subject if isinstance(subject, str) and subject else "all",
            prompt=columns.get_user_message("problem"),
            responses=("\n".join(columns.get_texts("eval_solution")),),
            preferences=(),
            metadata={"right": [is_right], "rows": [StrictRow(row, origin).id]},
        )

    def join(self, item: Item, other: Item) -> Item:
        """Return the item with the solution of another row of the problem."""
        (row,) = other.metadata["rows"]
        if item.prompt != other.prompt:
            raise BenchmarkDataError(
                f"the problem {item.id} has other texts in the rows {item.metadata['rows'][0]} and "
                f"{row}; rows of equal `problem_id` must have equal `problem`"
            )
        if row in item.metadata["rows"]:
            raise BenchmarkDataError(f"the row {row} was read before; give each solution once")
        right = [*item.metadata["right"], *other.metadata["right"]]
        return replace(
            item,
            responses=item.responses + other.responses,
            preferences=_list_preferences(right),
            metadata={"right": right, "rows": [*item.metadata["rows"], row]},
        )

    def read_published_rewards(
        self, row: Mapping[str, Any], number: int, origin: str
    ) -> ScoredItem | None:
        """Read a problem from a result file of the authors, which has no solutions.

        The responses of the item are the names of the models that wrote the solutions.
        """
        if not isinstance(row, Mapping) or "solution_reference" not in row:
            return None
        columns = StrictRow({**row, "row": number}, origin, "row")
        sources = columns.get_texts("solution_reference")
        rewards = [columns.to_number(value, "score") for value in columns.get_list("score")]
        if len(rewards) != len(sources):
            columns.refuse(
                f"the column `score` has {len(rewards)} numbers for {len(sources)} solutions"
            )
        right = [source == RIGHT_SOURCE for source in sources]
        item = Item(
            id=columns.id,
            subset="all",
            prompt=columns.get_user_message("problem"),
            responses=sources,
            preferences=_list_preferences(right),
            metadata={"right": right},
        )
        return ScoredItem(item, rewards)

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """Compute the share of problems whose right solution is best; subjects are subsets.

        `metrics`, in `extra`, has `pairs`, the share of wrong solutions with a lower reward than
        the right one, and `mrr`, the mean reciprocal rank of the right one.
        """
        tallies = tally_subsets(scored, self.grade_item)
        overall, sections = self.combine(tallies)
        margins = [_list_margins(one) for one in scored if one.item.preferences]
        extra: dict[str, Any] = {}
        if margins:
            extra["metrics"] = {
                "pairs": mean(sum(m > 0 for m in each) / len(each) for each in margins),
                "mrr": mean(1 / (1 + sum(m <= 0 for m in each)) for each in margins),
            }
        missing = []
        if len(margins) != NUM_PROBLEMS:
            missing.append(f"has {len(margins)} of {NUM_PROBLEMS} problems")
        num_incomplete = sum(not _is_complete(one.item) for one in scored)
        if num_incomplete:
            missing.append(
                f"{num_incomplete} problems without one right and {NUM_WRONG} wrong solutions"
            )
        subsets = compute_subset_scores(tallies, {})
        return BenchmarkResult(overall, sections, subsets, extra, tuple(missing))

    def grade_item(self, scored_item: ScoredItem) -> ItemScore:
        """Grade as right if the right solution beats every other; not without both."""
        if not scored_item.item.preferences:
            return ItemScore(0, 0)
        return ItemScore(all(margin > 0 for margin in _list_margins(scored_item)), 1)

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """Compute the share over all problems."""
        pooled = pool(tallies.values())
        return CombinedScore(compute_subset_score(pooled).score if pooled else None, {})


def _list_preferences(right: Sequence[bool]) -> tuple[Preference, ...]:
    indices = range(len(right))
    return tuple(Preference(i, j) for i in indices for j in indices if right[i] and not right[j])


def _list_margins(scored_item: ScoredItem) -> list[float]:
    return [scored_item.get_margin(preference) for preference in scored_item.item.preferences]


def _is_complete(item: Item) -> bool:
    right = item.metadata["right"]
    return sum(right) == 1 and len(right) == 1 + NUM_WRONG
