"""Shapes of conversations and preference pairs: accepted shapes, and errors for all others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_core.errors import InvalidConversationError
from rm_core.inputs.conversations import ROLES, join, parse_conversation, parse_pair, parse_prompt

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
WRONG = {"role": "assistant", "content": "5"}
A_LIST = "must be a list of messages"
A_STRING_OR_LIST = "must be a string or a list of messages"
AN_OBJECT = "must be an object with `role` and `content`"
THE_ROLES = "allowed: system, user, assistant, tool"
A_STRING = 'give a string ("" for an empty answer) or content parts'
TEXT_ONLY = 'allowed: {"type": "text"'
WELL_FORMED = "send well-formed text"
APPEND = "append the answer to be scored"


def one_message(content: object, role: object = "assistant") -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


REFUSED = {
    "null": (None, "conversation is null", A_LIST),
    "string": ("2+2?", "conversation is a string", A_LIST),
    "object": (USER, "conversation is an object", A_LIST),
    "number": (5, "conversation is a number", A_LIST),
    "boolean": (True, "conversation is a boolean", A_LIST),
    "set": ({"user"}, "conversation is a set", A_LIST),
    "empty": ([], "conversation is empty", "give at least one message"),
    "message is a string": (["2+2?"], "message 0 is a string", AN_OBJECT),
    "message is a list": ([USER, [ANSWER]], "message 1 is a list", AN_OBJECT),
    "message is null": ([USER, None], "message 1 is null", AN_OBJECT),
    "no role": ([{"content": "4"}], "message 0 has no `role`", THE_ROLES),
    "role is null": (one_message("4", None), "message 0 has no `role`", THE_ROLES),
    "unknown role": (
        [USER, *one_message("4", "human")],
        "message 1 has the role 'human'",
        THE_ROLES,
    ),
    "other case": (one_message("4", "Assistant"), "the role 'Assistant'", THE_ROLES),
    "role is a list": (one_message("4", ["user"]), "the role ['user']", THE_ROLES),
    "role is a number": (one_message("4", 7), "the role 7", THE_ROLES),
    "no content": ([USER, {"role": "assistant"}], "message 1 has no `content`", A_STRING),
    "content is null": (one_message(None), "message 0 has no `content`", A_STRING),
    "null, no tool call": (
        [{"role": "assistant", "content": None, "tool_calls": []}],
        "message 0 has no `content`",
        A_STRING,
    ),
    "content is a number": (
        one_message(4),
        "message 0 has content that is a number",
        "a string or a list",
    ),
    "content is an object": (
        one_message({"text": "4"}),
        "content that is an object",
        "a string or a list",
    ),
    "sound": (
        one_message([{"type": "text", "text": "4"}, {"type": "input_audio", "input_audio": {}}]),
        "part 1 of message 0 is of type 'input_audio'",
        TEXT_ONLY,
    ),
    "image at an address": (
        one_message([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]),
        "part 0 of message 0 is an image at an address (https://...)",
        "send the file itself",
    ),
    "image in a file": (
        one_message([{"type": "image", "image": "file:///etc/passwd"}]),
        "an image at an address (file://...)",
        "send the file itself",
    ),
    "image without its source": (
        one_message([{"type": "image"}]),
        "is of type 'image' and has no image in `image`",
        "base64",
    ),
    "image that is a number": (
        one_message([{"type": "image_url", "image_url": {"url": 4}}]),
        "has a number in `image_url`",
        "base64",
    ),
    "part is a number": (one_message([4]), "part 0 of message 0 is not a text part", TEXT_ONLY),
    "part is null": (one_message([None]), "part 0 of message 0 is not a text part", TEXT_ONLY),
    "part without text": (
        one_message([{"type": "text"}]),
        "part 0 of message 0 is not a text",
        TEXT_ONLY,
    ),
    "part with a number": (
        one_message([{"type": "text", "text": 4}]),
        "is not a text part",
        TEXT_ONLY,
    ),
    "surrogate": (
        one_message("ab\ud83d"),
        "message 0 has a lone surrogate at character 2",
        WELL_FORMED,
    ),
    "surrogate in a part": (
        [USER, *one_message(["4", {"type": "text", "text": "\udc00"}])],
        "part 1 of message 1 has a lone surrogate",
        WELL_FORMED,
    ),
    "last is the user's": ([ANSWER, USER], "the last message has role 'user'", APPEND),
    "last is a tool's": (
        [USER, *one_message("4", "tool")],
        "the last message has role 'tool'",
        APPEND,
    ),
    "last is the system's": (one_message("Be brief.", "system"), "has role 'system'", APPEND),
}


@pytest.mark.parametrize(("value", "problem", "remedy"), REFUSED.values(), ids=REFUSED.keys())
def test_error_names_problem_and_remedy(value: object, problem: str, remedy: str) -> None:
    with pytest.raises(InvalidConversationError) as caught:
        parse_conversation(value)
    assert problem in caught.value.detail
    assert remedy in caught.value.detail
    assert caught.value.code == "invalid_conversation"


def test_error_does_not_quote_long_values() -> None:
    with pytest.raises(InvalidConversationError) as caught:
        parse_conversation(one_message("4", "x" * 100_000))
    assert len(caught.value.detail) < 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner)
    ),
    max_leaves=8,
)
ALMOST = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(ROLES) | JSON, "content": JSON}), max_size=3
)


@given(JSON | ALMOST)
def test_any_value_is_parsed_or_refused(value: Any) -> None:
    try:
        messages = parse_conversation(value)
    except InvalidConversationError:
        return
    assert [m["role"] for m in messages] == [m["role"] for m in value]
    assert messages[-1]["role"] == "assistant"
    assert all(type(m["content"]) is str for m in messages)
    assert parse_conversation(messages) == messages


PARTS = st.lists(
    st.tuples(st.text(), st.sampled_from(["string", "typed", "untyped", "responses"])),
    min_size=1,
    max_size=4,
)


@given(PARTS)
def test_text_parts_are_joined_unchanged(parts: list[tuple[str, str]]) -> None:
    shape = {
        "string": lambda text: text,
        "typed": lambda text: {"type": "text", "text": text},
        "untyped": lambda text: {"text": text},
        "responses": lambda text: {"type": "input_text", "text": text},
    }
    (message,) = parse_conversation(one_message([shape[kind](text) for text, kind in parts]))
    assert message["content"] == "".join(text for text, _ in parts)


def test_parse_conversation_does_not_modify_its_input() -> None:
    value = [USER, *one_message([{"type": "text", "text": "4"}])]
    before = copy.deepcopy(value)
    parse_conversation(value)[1]["content"] = "changed"
    assert value == before


def test_other_keys_are_kept() -> None:
    call = {"id": "1", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
    value = [
        {**USER, "name": "Jane"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
        ANSWER,
    ]
    messages = parse_conversation(value)
    assert messages[0] == {**USER, "name": "Jane"}
    assert messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert messages[2] == value[2]


def test_tuples_and_empty_answers_are_accepted() -> None:
    assert parse_conversation((USER, *one_message(""))) == [USER, *one_message("")]


def test_parse_prompt_accepts_string_or_messages() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert parse_prompt("2+2?") == [USER]
    assert parse_prompt([system, USER]) == [system, USER]


SYSTEM = {"role": "system", "content": "Be brief."}
WHOLE = [USER, ANSWER]
TALK = [USER, ANSWER, {"role": "user", "content": "And 3+3?"}]
SIX = {"role": "assistant", "content": "6"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
RESULT = {"role": "tool", "content": "6"}
JOINED = {
    "string and string": ("2+2?", "4", WHOLE),
    "messages and string": ([SYSTEM, USER], "4", [SYSTEM, *WHOLE]),
    "turns and string": (TALK, "6", [*TALK, SIX]),
    "string and answer": ("2+2?", [ANSWER], WHOLE),
    "messages and answer": (TALK, [SIX], [*TALK, SIX]),
    "messages and answers with a tool": (TALK, [CALL, RESULT, SIX], [*TALK, CALL, RESULT, SIX]),
    "prompt ends in a tool call": ([USER, CALL], [RESULT, SIX], [USER, CALL, RESULT, SIX]),
    "string repeated": ("2+2?", WHOLE, WHOLE),
    "messages repeated": (TALK, [*TALK, SIX], [*TALK, SIX]),
    "repeated as parts": ("2+2?", [{"role": "user", "content": ["2+", "2?"]}, ANSWER], WHOLE),
    "no prompt": (None, WHOLE, WHOLE),
}


@pytest.mark.parametrize(("prompt", "answer", "whole"), JOINED.values(), ids=JOINED.keys())
def test_join_makes_a_conversation(prompt: object, answer: object, whole: object) -> None:
    assert join(prompt, answer) == whole


NOT_JOINED = {
    "string without prompt": (None, "4", "`chosen` is a string without a `prompt`", "give"),
    "another prompt": ("3+3?", WHOLE, "role 'user' that is not the start of `prompt`", "omit"),
    "a system prompt more": ("2+2?", [SYSTEM, *WHOLE], "of role 'system'", "same prompt"),
    "prompt is a number": (5, "4", "the prompt is a number", A_STRING_OR_LIST),
    "prompt is empty": ([], "4", "the prompt is empty", "give at least one message"),
    "prompt has a surrogate": ("\ud83d", "4", "prompt has a lone surrogate", WELL_FORMED),
    "answer has a surrogate": ("2+2?", "\ud83d", "chosen has a lone surrogate", WELL_FORMED),
    "answer is a number": ("2+2?", 4, "the chosen is a number", A_STRING_OR_LIST),
    "answer is empty": ("2+2?", [], "the chosen is empty", "give at least one message"),
    "answer repeats no answer": ("2+2?", [USER], "the last message has role 'user'", APPEND),
    "no prompt, no answer": (None, [USER], "the last message has role 'user'", APPEND),
}


@pytest.mark.parametrize(
    ("prompt", "answer", "problem", "remedy"), NOT_JOINED.values(), ids=NOT_JOINED.keys()
)
def test_join_refuses_prompt_and_answer_that_do_not_fit(
    prompt: object, answer: object, problem: str, remedy: str
) -> None:
    with pytest.raises(InvalidConversationError) as caught:
        join(prompt, answer, "chosen")
    assert problem in caught.value.detail
    assert remedy in caught.value.detail


def test_empty_prompt_error_does_not_mention_the_assistant() -> None:
    with pytest.raises(InvalidConversationError) as caught:
        parse_prompt([])
    assert "assistant" not in caught.value.detail


PAIRS = {
    "prompt string, answer strings": {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    "prompt string, whole conversations": {
        "prompt": "2+2?",
        "chosen": WHOLE,
        "rejected": [USER, WRONG],
    },
    "prompt messages, answer messages": {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG]},
    "no prompt": {"chosen": WHOLE, "rejected": [USER, WRONG]},
    "prompt is null": {"prompt": None, "chosen": WHOLE, "rejected": [USER, WRONG]},
    "each in its own shape": {"prompt": "2+2?", "chosen": "4", "rejected": [WRONG]},
    "other columns": {"id": 7, "prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": None},
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_parse_pair_accepts_every_shape(pair: object) -> None:
    assert parse_pair(pair) == (WHOLE, [USER, WRONG])


def test_parse_pair_accepts_empty_strings() -> None:
    chosen, rejected = parse_pair({"prompt": "", "chosen": "", "rejected": "5"})
    assert [m["content"] for m in chosen] == ["", ""]
    assert [m["content"] for m in rejected] == ["", "5"]


NO_PAIRS = {
    "string": ("4", "must be an object with `chosen`, `rejected`, got a string"),
    "list": ([WHOLE, WHOLE], "got a list"),
    "no rejected": ({"prompt": "2+2?", "chosen": "4"}, "has no `rejected`; it has `chosen`"),
    "nothing": ({}, "has no `chosen`, `rejected`; it has nothing"),
    "null": ({"prompt": "2+2?", "chosen": None, "rejected": "5"}, "has no `chosen`"),
    "bad chosen": ({"prompt": "2+2?", "chosen": 4, "rejected": "5"}, "the chosen is a number"),
    "bad rejected": ({"prompt": "2+2?", "chosen": "4", "rejected": 5}, "the rejected is a number"),
}


@pytest.mark.parametrize(("value", "problem"), NO_PAIRS.values(), ids=NO_PAIRS.keys())
def test_parse_pair_refuses_other_values(value: object, problem: str) -> None:
    with pytest.raises(InvalidConversationError) as caught:
        parse_pair(value)
    assert problem in caught.value.detail
