"""Read a row of the output of `skyreward score` as a prompt and its answers with their rewards."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from rm_core import InputError, ScoreError
from rm_core.inputs.conversations import Messages, get_text
from serve.errors import JobInputError
from serve.jobs.columns import (
    CHOSEN,
    CONVERSATIONS,
    GENERATION,
    GROUPS,
    INPUT,
    PROMPTS,
    REJECTED,
    RESPONSES,
    Columns,
    RecordKind,
)
from serve.jobs.inputs.items import ScoringInput
from serve.jobs.inputs.rows import Row
from serve.jobs.record_reader import parse_record
from serve.jobs.row_results import RESULT_PREFIX, is_job_error

RowProblem: TypeAlias = Literal["with_error", "without_reward", "unreadable"]
"""Why a row is not used."""

_TEXT_COLUMNS = (
    *("prompt", *PROMPTS, INPUT, *CONVERSATIONS),
    *(*CHOSEN, *REJECTED, *GROUPS, *RESPONSES, GENERATION),
)
_MESSAGE_KEYS = {"role", "from"}


class ScoredRow(NamedTuple):
    """The answers of one row.

    Attributes:
        kind: kind of the record.
        prompt: messages up to the last one of a user or tool that all answers share.
        tools: function definitions of the prompt; None without them.
        answers: the messages of each answer and its reward, which is finite.
        num_unscored: number of answers without a reward.
        is_text: whether prompt and answers are text in the input, and not messages.
    """

    kind: RecordKind
    prompt: Messages
    tools: Any
    answers: list[tuple[Messages, float]]
    num_unscored: int
    is_text: bool


class UnusedRow(NamedTuple):
    """A row that cannot be used, and why."""

    problem: RowProblem
    message: str


def read_scored_row(row: Row, columns: Columns) -> ScoredRow | UnusedRow:
    """Read a row of a scored file; `columns` are those that the job was given.

    Raises:
        JobInputError: the row has the verdict of a judge on a pair.
    """
    record = row.record
    if isinstance(record, ScoreError):
        return UnusedRow("unreadable", record.message)
    if not isinstance(record, Mapping):
        return UnusedRow("unreadable", f"not a JSON object but {type(record).__name__}")
    error = _find_error(record)
    rewards_of_group = _get_result(record, "rewards")
    if error and not rewards_of_group:
        return UnusedRow("with_error", f"{error['message']} ({error['code']})")
    try:
        parsed = parse_record(record, columns)
    except InputError as failure:
        return UnusedRow("unreadable", failure.detail)
    kind = parsed.kind
    assert kind is not None, "a parsed record has a kind"
    rewards = _list_rewards(record, kind, len(parsed.conversations))
    if (
        kind == "pair"
        and rewards == [None, None]
        and _is_number(_get_result(record, "probability"))
    ):
        raise JobInputError(
            f"row {row.number} (counted from 0) has a judge's verdict on a pair, which has a "
            "`margin` and no rewards; have the judge score `responses`, whose rewards are "
            "comparable, or use `margin` itself"
        )
    if len(rewards) != len(parsed.conversations):
        return UnusedRow(
            "unreadable",
            f"it has {len(rewards)} rewards and {len(parsed.conversations)} answers; give the "
            "column options that the job had",
        )
    found = [
        (conversation, float(reward))
        for conversation, reward in zip(parsed.conversations, rewards, strict=True)
        if reward is not None and not isinstance(conversation, ScoreError)
    ]
    if not found:
        return UnusedRow("without_reward", f"no reward; it has {', '.join(map(str, record))}")
    conversations = [_split_tools(conversation) for conversation, _ in found]
    messages = [conversation for conversation, _ in conversations]
    length = _count_prompt_messages(messages)
    if not length:
        return UnusedRow("unreadable", "its answers do not have a prompt in common")
    tools = conversations[0][1]
    return ScoredRow(
        kind,
        messages[0][:length],
        tools,
        [(one[length:], reward) for one, (_, reward) in zip(messages, found, strict=True)],
        len(rewards) - len(found),
        tools is None and _is_text(record, columns, messages),
    )


def measure_answer(answer: Messages) -> int:
    """Return the length of an answer in characters."""
    return sum(len(get_text(message.get("content") or "")) for message in answer)


def _find_error(record: Mapping[str, Any]) -> Mapping[str, str] | None:
    # An input with an own column `error` has the errors of the job under the other name.
    for name in (f"{RESULT_PREFIX}error", "error"):
        if is_job_error(error := record.get(name)):
            return error
    return None


def _get_result(record: Mapping[str, Any], name: str) -> Any:
    return record.get(f"{RESULT_PREFIX}{name}", record.get(name))


def _list_rewards(
    record: Mapping[str, Any], kind: RecordKind, num_answers: int
) -> list[float | None]:
    """Return the reward of each answer, None where it is missing or not a finite number."""
    if kind == "group":
        rewards = _get_result(record, "rewards")
        values = rewards if isinstance(rewards, list) and rewards else [None] * num_answers
    elif kind == "pair":
        values = [_get_result(record, f"{side}_reward") for side in ("chosen", "rejected")]
    else:
        values = [_get_result(record, "reward")]
    return [value if _is_number(value) else None for value in values]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _split_tools(conversation: ScoringInput) -> tuple[Messages, Any]:
    if isinstance(conversation, dict):
        return conversation["messages"], conversation["tools"]
    assert isinstance(conversation, list), "a classifier reads conversations"
    return conversation, None


def _count_prompt_messages(conversations: Sequence[Messages]) -> int:
    """Return how many messages all conversations share, up to the last one before an answer."""
    first = conversations[0]
    shortest = min(map(len, conversations)) - 1
    shared = itertools.takewhile(
        lambda i: all(other[i] == first[i] for other in conversations), range(shortest)
    )
    ends = [i + 1 for i in shared if first[i]["role"] in ("user", "tool")]
    return ends[-1] if ends else 0


def _is_text(
    record: Mapping[str, Any], columns: Columns, conversations: Sequence[Messages]
) -> bool:
    if any(
        [message["role"] for message in conversation] != ["user", "assistant"]
        or not all(isinstance(message["content"], str) for message in conversation)
        for conversation in conversations
    ):
        return False
    paths = (columns.messages, columns.prompt, columns.response, columns.chosen, columns.rejected)
    named = [path.partition(".")[0] for path in (*paths, *columns.responses) if path]
    names = {*_TEXT_COLUMNS, *named, *filter(None, paths)}.difference(columns.ignored)
    return not any(_has_messages(record[name]) for name in names if name in record)


def _has_messages(value: Any) -> bool:
    if isinstance(value, Mapping):
        return not _MESSAGE_KEYS.isdisjoint(value) or any(map(_has_messages, value.values()))
    return isinstance(value, list) and any(map(_has_messages, value))
