"""Plan-RewardBench: pairs of tool trajectories in seven splits.

The rules follow github.com/wyy-1112/Plan-RewardBench at 1512190, in
`eval/evaluate_benchmark_final.py`: the prompt has the tools and the query, and a trajectory is
flattened to one assistant message, as its runner sends it to a remote reward model. That runner
gives a local reward model each message of a trajectory as a separate user or assistant message,
which templates with alternating roles refuse. Rewards that differ by at most 0.0001 are half right.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from rm_core.benchmarks.aggregation import (
    compute_subset_scores,
    count_items,
    list_missing_items,
    mean_score,
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

SPLITS: Mapping[str, int] = {
    "planning_multi_easy": 109,
    "planning_multi_hard": 73,
    "planning_single_easy": 144,
    "planning_single_hard": 158,
    "robust_recovery": 361,
    "safety_refusal": 51,
    "tool_irrelevance": 275,
}
"""Number of pairs of each split."""
TIE = 1e-4
"""Largest difference of rewards that is a tie."""
_NAMED_ROLES = ("tool_call", "tool_response", "tool")


class PlanRewardBench:
    """The Plan-RewardBench benchmark."""

    name = "plan-rewardbench"
    title = "Plan-RewardBench"
    kinds: tuple[Kind, ...] = ("classifier",)
    hub: tuple[HubDataset, ...] = ()  # The data is published on GitHub only.
    official_protocol = OfficialProtocol(
        max_length=16384,
        truncation="right",
        dtype="bfloat16",
        source="wyy-1112/Plan-RewardBench@1512190 eval/evaluate_benchmark_final.py, config.yaml",
        numbers_repeats=True,
    )

    def __init__(self, options: BenchmarkOptions | None = None) -> None:
        self.options = options or BenchmarkOptions()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Read a pair of trajectories: the chosen one, then the rejected one."""
        columns = StrictRow(row, origin, "uuid")
        stem = posixpath.basename(origin).split(".")[0].removesuffix("_unified")
        if stem not in SPLITS:
            columns.refuse(
                f"the name of the file gives the split, so it must be one of {', '.join(SPLITS)}"
            )
        tools = columns.get("tools")
        if tools is not None:
            tools = columns.get_list("tools", may_be_empty=True)
        environment = _dump(tools or [], indent=2)
        query = columns.get_text("query")
        prompt = (
            f"<tool_environment>\n{environment}\n</tool_environment>\n"
            f"<user_query>\n{query}\n</user_query>"
        )
        rejected = "rejected" if columns.get("reject") is None else "reject"
        return Item(
            id=columns.id,
            subset=stem,
            prompt=[{"role": "user", "content": columns.validate_text(prompt, "tools")}],
            responses=(
                _flatten(columns, "chosen.messages"),
                _flatten(columns, f"{rejected}.messages"),
            ),
            preferences=(Preference(0, 1),),
        )

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """Compute the splits, which are also the sections, and their unweighted mean."""
        tallies = tally_subsets(scored, self.grade_item)
        overall, sections = self.combine(tallies)
        missing = list_missing_items(count_items(sections), SPLITS, "subset")
        return BenchmarkResult(overall, sections, sections, {}, tuple(missing))

    def grade_item(self, scored_item: ScoredItem) -> ItemScore:
        """Grade as right if the chosen trajectory has the higher reward; a tie is half right."""
        (preference,) = scored_item.item.preferences
        margin = scored_item.get_margin(preference)
        return ItemScore(0.5 if abs(margin) <= TIE else float(margin > 0), 1)

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """Compute the available splits and their mean."""
        sections = compute_subset_scores(tallies, SPLITS)
        return CombinedScore(mean_score(sections), sections)


def _flatten(columns: StrictRow, name: str) -> str:
    """Return a trajectory as one text: a line `[ROLE] content` a message, an empty line between."""
    parts = []
    for message in columns.get_list(name):
        role = message.get("role") if isinstance(message, Mapping) else None
        content = message.get("content", "") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not isinstance(content, str | list | Mapping):
            columns.refuse(
                f"an item of the column `{name}` must be a message with `role` and `content`"
            )
        if not isinstance(content, str):
            content = _dump(content)
        tool = message.get("name") if role in _NAMED_ROLES else None
        parts.append(f"[{role.upper()}{f' name={tool}' if tool else ''}] {content}")
    return columns.validate_text("\n\n".join(parts), name)


def _dump(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
