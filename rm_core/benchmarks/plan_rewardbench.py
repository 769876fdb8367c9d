"""Plan-RewardBench: pairs of tool trajectories in seven splits.

The rules follow github.com/wyy-1112/Plan-RewardBench at 1512190, in
`eval/evaluate_benchmark_final.py`: the first message has the tools and the query, and templates
refuse the roles of tools, so that the runner writes a trajectory in one of two forms. To a remote
reward model it sends the trajectory as the text of one assistant message. A local reward model,
such as the published Skywork-Reward-V2, gets each message of the trajectory as a user or assistant
message, which templates with alternating roles refuse. Rewards that differ by at most 0.0001 are
half right.

The local form has one difference: the runner's tokenizer adds a second BOS to the rendered text of
some models, and here every conversation has exactly one. Not confirmed, since the files were not at
hand: the rows of `robust_recovery`, and how the set on the hub (wyy1112/Plan-RewardBench), which
has all rows in one split, names the split of a row.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from rm_core.benchmarks.variants import BenchmarkOptions, choice
from rm_core.config import Kind
from rm_core.inputs.conversations import Messages

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
_CHAT_ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class PlanRewardBenchOptions(BenchmarkOptions):
    """Variants in which published results differ."""

    trajectories: str = choice(
        "flattened",
        "messages",
        meaning="a trajectory is the text of one response, as the authors' runner sends it to a "
        "remote reward model; or each of its messages is a message, as that runner gives it to a "
        "reward model that it loads",
    )


class _TrajectoryMessage(NamedTuple):
    role: str
    content: str
    tag: str

    @property
    def line(self) -> str:
        return f"{self.tag} {self.content}"


class PlanRewardBench:
    """The Plan-RewardBench benchmark."""

    name = "plan-rewardbench"
    title = "Plan-RewardBench"
    kinds: tuple[Kind, ...] = ("classifier",)
    hub: tuple[HubDataset, ...] = ()  # All rows there are in one split.
    official_protocol = OfficialProtocol(
        max_length=16384,
        truncation="right",
        dtype="bfloat16",
        source="wyy-1112/Plan-RewardBench@1512190 eval/evaluate_benchmark_final.py, config.yaml",
        numbers_repeats=True,
    )

    def __init__(self, options: PlanRewardBenchOptions | None = None) -> None:
        self.options = options or PlanRewardBenchOptions()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Read a pair of trajectories: the chosen one, then the rejected one."""
        has_uuid = not isinstance(row, Mapping) or row.get("uuid") or not row.get("parent_uuid")
        columns = StrictRow(row, origin, "uuid" if has_uuid else "parent_uuid")
        stem = posixpath.basename(origin).split(".")[0].removesuffix("_unified")
        if stem not in SPLITS:
            columns.refuse(
                f"the name of the file gives the split, so it must be one of {', '.join(SPLITS)}"
            )
        # As the runner: a missing column is an empty list, and null is written as `null`.
        tools = row.get("tools", [])
        if tools is not None and tools != []:
            tools = columns.get_list("tools")
        query = columns.get_text("query")
        text = (
            f"<tool_environment>\n{_dump(tools, indent=2)}\n</tool_environment>\n"
            f"<user_query>\n{query}\n</user_query>"
        )
        prompt = [{"role": "user", "content": columns.validate_text(text, "tools")}]
        rejected = "rejected" if columns.get("reject") is None else "reject"
        trajectories = (
            list(_iter_messages(columns, f"{name}.messages")) for name in ("chosen", rejected)
        )
        write = _flatten if self.options.trajectories == "flattened" else _list_messages
        return Item(
            id=columns.id,
            subset=stem,
            prompt=prompt,
            responses=tuple(write(prompt, trajectory) for trajectory in trajectories),
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


def _iter_messages(columns: StrictRow, name: str) -> Iterator[_TrajectoryMessage]:
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
        tag = f"[{role.upper()}{f' name={tool}' if tool else ''}]"
        columns.validate_text(tag, name)
        yield _TrajectoryMessage(role, columns.validate_text(content, name), tag)


def _flatten(_: Messages, trajectory: Sequence[_TrajectoryMessage]) -> str:
    """Return a trajectory as one text: a line `[ROLE] content` a message, an empty line between."""
    return "\n\n".join(message.line for message in trajectory)


def _list_messages(prompt: Messages, trajectory: Sequence[_TrajectoryMessage]) -> Messages:
    """Return the conversation: other roles than user and assistant are lines of the assistant."""
    return [
        *prompt,
        *(
            {"role": message.role, "content": message.content}
            if message.role in _CHAT_ROLES
            else {"role": "assistant", "content": message.line}
            for message in trajectory
        ),
    ]


def _dump(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
