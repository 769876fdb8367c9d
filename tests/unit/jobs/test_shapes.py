"""Kinds of records: the service's shapes, ShareGPT, plain prompts, and named columns."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rm_core import InputError, InvalidConversationError, ScoreError
from serve.errors import JobInputError
from serve.jobs.columns import DEFAULT_COLUMNS, Columns
from serve.jobs.record_reader import parse_record, try_parse_record

USER = {"role": "user", "content": "2+2?"}
FOUR = {"role": "assistant", "content": "4"}
FIVE = {"role": "assistant", "content": "5"}
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN = {"from": "human", "value": "2+2?"}
GPT = {"from": "gpt", "value": "4"}

ONE = ("conversation", ([USER, FOUR],))
PAIR = ("pair", ([USER, FOUR], [USER, FIVE]))
GROUP = ("group", ([USER, FOUR], [USER, FIVE]))

SAME: list[tuple[dict[str, Any], Any]] = [
    ({"messages": [USER, FOUR]}, ONE),
    ({"conversations": [HUMAN, GPT]}, ONE),
    ({"conversations": [USER, FOUR]}, ONE),
    ({"messages": {"role": ["user", "assistant"], "content": ["2+2?", "4"]}}, ONE),
    ({"messages": [USER | {"name": None, "tool_calls": None}, FOUR | {"name": None}]}, ONE),
    ({"conversations": [HUMAN, GPT], "system": "Be brief."}, (ONE[0], ([SYSTEM, USER, FOUR],))),
    ({"conversations": [HUMAN, GPT], "system": ""}, ONE),
    ({"prompt": "2+2?", "response": "4"}, ONE),
    ({"prompt": "2+2?", "completion": "4"}, ONE),
    ({"prompt": [USER], "completion": [FOUR]}, ONE),
    ({"prompt": [HUMAN], "output": GPT}, ONE),
    ({"question": "2+2?", "answer": "4"}, ONE),
    ({"instruction": "2+2?", "input": "", "output": "4"}, ONE),
    (
        {"instruction": "Add.", "input": "2+2?", "output": "4"},
        (ONE[0], ([{"role": "user", "content": "Add.\n2+2?"}, FOUR],)),
    ),
    ({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, PAIR),
    ({"chosen": [USER, FOUR], "rejected": [USER, FIVE]}, PAIR),
    ({"chosen": [USER, FOUR], "rejected": [USER, FIVE], "question": "other"}, PAIR),
    ({"prompt": "2+2?", "chosen": [USER, FOUR], "rejected": [FIVE]}, PAIR),
    (
        {"system": "Be brief.", "question": "2+2?", "chosen": "4", "rejected": "5"},
        ("pair", ([SYSTEM, USER, FOUR], [SYSTEM, USER, FIVE])),
    ),
    (
        {"conversations": [HUMAN], "chosen": GPT, "rejected": GPT | {"value": "5"}},
        PAIR,
    ),
    ({"prompt": "2+2?", "responses": ["4", [FIVE]]}, GROUP),
    ({"instruction": "2+2?", "responses": ["4", "5"]}, GROUP),
    # Columns that the service's shapes do not have belong to the caller.
    ({"prompt": "2+2?", "response": "4", "model": "gpt-4"}, ONE),
    ({"messages": [USER, FOUR], "output": "x", "prompt": "2+2?", "rejected": False}, ONE),
    ({"prompt": "2+2?", "chosen": "4", "rejected": "5", "answer": "4"}, PAIR),
    # In a table, null means that the row does not have the column.
    ({"messages": None, "prompt": "2+2?", "chosen": "4", "rejected": "5"}, PAIR),
]


@pytest.mark.parametrize(("record", "expected"), SAME)
def test_shapes_are_recognized(record: dict[str, Any], expected: Any) -> None:
    parsed = parse_record(record)
    assert (parsed.kind, parsed.conversations) == expected
    assert try_parse_record(record) == parsed


NAMED: list[tuple[dict[str, Any], Columns, Any]] = [
    ({"chat": [USER, FOUR], "messages": 7}, Columns(messages="chat"), ONE),
    ({"a.b": [USER, FOUR], "a": {"b": 1}}, Columns(messages="a.b"), ONE),
    (
        {"q": "2+2?", "good": {"answer": "4"}, "bad": {"answer": "5"}, "messages": [USER]},
        Columns(prompt="q", chosen="good.answer", rejected="bad.answer"),
        PAIR,
    ),
    ({"prompt": "2+2?", "chosen": "4", "bad": "5"}, Columns(rejected="bad"), PAIR),
    ({"prompt": "2+2?", "chosen": ["4"], "rejected": ["5"]},
     Columns(chosen="chosen.0", rejected="rejected.0"), PAIR),
    (
        {"prompt": [USER], "best": {"text": "4"}, "losers": [{"text": "5"}]},
        Columns(responses=("best.text", "losers.text")),
        GROUP,
    ),
    ({"question": "2+2?", "answer": "4", "response": "5"}, Columns(response="answer"), ONE),
    ({"q": "2+2?", "response": "4"}, Columns(prompt="q"), ONE),
    (
        {"s": "Be brief.", "prompt": "2+2?", "response": "4"},
        Columns(system="s"),
        (ONE[0], ([SYSTEM, USER, FOUR],)),
    ),
    (
        {"s": "Be brief.", "prompt": "2+2?", "responses": ["4", [SYSTEM, USER, FIVE]]},
        Columns(system="s", prompt="prompt"),
        (GROUP[0], ([SYSTEM, USER, FOUR], [SYSTEM, USER, FIVE])),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("record", "columns", "expected"), NAMED)
def test_columns_can_be_named(record: dict[str, Any], columns: Columns, expected: Any) -> None:
    parsed = parse_record(record, columns)
    assert (parsed.kind, parsed.conversations) == expected


REFUSED: list[tuple[Any, Columns, str | None, str]] = [
    ([1], DEFAULT_COLUMNS, None, "must be a JSON object, got list"),
    ({"text": "x"}, DEFAULT_COLUMNS, None, "no known shape.*this one has `text`"),
    ({}, DEFAULT_COLUMNS, None, "this one has nothing"),
    ({"messages": None}, DEFAULT_COLUMNS, None, "no known shape.*`messages`"),
    ({"messages": [USER]}, DEFAULT_COLUMNS, "conversation", "last message has role 'user'"),
    (
        {"prompt": "p", "chosen": "4"},
        DEFAULT_COLUMNS,
        "pair",
        "no `rejected`; it has `prompt`, `chosen`",
    ),
    ({"chosen": "4", "rejected": "5"}, DEFAULT_COLUMNS, "pair", "the record has no `prompt`"),
    ({"response": "4"}, DEFAULT_COLUMNS, "conversation", "the record has no `prompt`"),
    ({"prompt": "p", "responses": []}, DEFAULT_COLUMNS, "group", "at least one response"),
    (
        {"prompt": "p", "responses": "x"},
        DEFAULT_COLUMNS,
        "group",
        "a list of at least one response",
    ),
    ({"responses": ["x"]}, DEFAULT_COLUMNS, "group", "needs a `prompt`"),
    (
        {"messages": [USER, FOUR], "chosen": "4", "rejected": "5", "prompt": "p"},
        DEFAULT_COLUMNS,
        "conversation",
        "is a conversation and a pair at once; name the columns",
    ),
    (
        {"prompt": "p", "response": "4", "answer": "5"},
        DEFAULT_COLUMNS,
        "conversation",
        "`response`, `answer`, which is ambiguous; choose one by --response-column",
    ),
    (
        {"question": "p", "instruction": "q", "response": "4"},
        DEFAULT_COLUMNS,
        "conversation",
        "choose one by --prompt-column",
    ),
    ({"a": {"c": 1}}, Columns(messages="a.b"), "conversation", "nothing at `a.b`"),
    ({"a": 1}, Columns(messages="a.b"), "conversation", "nothing at `a.b`.*it has `a`"),
    ({"conversations": [HUMAN, GPT], "system": 7}, DEFAULT_COLUMNS, "conversation", "must be text"),
    (
        {"conversations": [HUMAN, {"from": "narrator", "value": "x"}]},
        DEFAULT_COLUMNS,
        "conversation",
        "message 1 has the role 'narrator'",
    ),
]


@pytest.mark.parametrize(("record", "columns", "kind", "says"), REFUSED)
def test_record_that_cannot_be_scored_explains_why(
    record: Any, columns: Columns, kind: str | None, says: str
) -> None:
    with pytest.raises(InvalidConversationError) as caught:
        parse_record(record, columns)
    assert re.search(says, caught.value.detail), caught.value.detail
    parsed = try_parse_record(record, columns)
    assert parsed.kind == kind
    assert parsed.error == ScoreError.from_exception(caught.value)
    assert parsed.conversations == ()


def test_invalid_response_does_not_affect_group() -> None:
    parsed = parse_record({"prompt": "2+2?", "responses": ["4", 7, [{"role": "user"}]]})
    assert parsed.conversations[0] == [USER, FOUR]
    assert all(isinstance(c, ScoreError) for c in parsed.conversations[1:])


def test_unreadable_line_keeps_its_error() -> None:
    error = ScoreError("invalid_json", "no")
    assert try_parse_record(error).error == error


def test_null_keys_within_tool_calls_are_dropped() -> None:
    call = {"function": {"name": "f", "arguments": {"x": 1, "y": None}}, "id": None}
    parsed = parse_record({"messages": [USER, FOUR | {"tool_calls": [call]}]})
    message = parsed.conversations[0][1]  # type: ignore[index]
    assert message["tool_calls"] == [{"function": {"name": "f", "arguments": {"x": 1}}}]


@pytest.mark.parametrize(
    "columns",
    [
        {"messages": "a", "chosen": "b"},
        {"response": "a", "responses": ("b",)},
        {"messages": "a", "prompt": "b"},
    ],
)
def test_columns_of_several_shapes_are_refused(columns: dict[str, Any]) -> None:
    with pytest.raises(JobInputError, match=r"--messages-column|--response-column"):
        Columns(**columns)


def test_lone_surrogate_in_system_message_is_refused() -> None:
    record = {"conversations": [HUMAN, GPT], "system": "\ud800"}
    with pytest.raises(InputError, match="lone surrogate"):
        parse_record(record)
