"""Bodies of steps, and conversations up to each answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rm_core import (
    ChatEncoder,
    InvalidConversationError,
    StepItem,
    find_unshared_turns,
    parse_step_item,
    split_turns,
)

QUESTION = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
THREE = [QUESTION, ANSWER, QUESTION, ANSWER, {"role": "tool", "content": "x"}, ANSWER]


def test_step_item_has_messages_and_either_steps_or_response() -> None:
    assert parse_step_item({"prompt": "2+2?", "response": "a\nb"}) == StepItem(
        [QUESTION], response="a\nb"
    )
    assert parse_step_item({"prompt": [QUESTION], "steps": ["a", ""], "response": None}) == (
        StepItem([QUESTION], steps=("a", ""))
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("2+2?", "the item is a string"),
        ({"prompt": "q"}, "neither of `steps` and `response`"),
        ({"prompt": "q", "steps": ["a"], "response": "a"}, "both of `steps` and `response`"),
        ({"prompt": "q", "steps": []}, "`steps` is empty"),
        ({"prompt": "q", "steps": "a"}, "`steps` is a string; it must be a list of texts"),
        ({"prompt": "q", "steps": ["a", 1]}, "step 1 is a number"),
        ({"prompt": "q", "steps": ["\ud800"]}, "step 0 has a lone surrogate"),
        ({"prompt": "q", "response": ["a"]}, "`response` is a list; it must be a string"),
        ({"prompt": "q", "response": "\ud800"}, "`response` has a lone surrogate"),
        ({"steps": ["a"]}, "has no `prompt`"),
        ({"prompt": [], "steps": ["a"]}, "the prompt is empty"),
        ({"prompt": "q", "step": ["a"]}, "unknown keys `step`; allowed: `prompt`, `steps`"),
    ],
)
def test_malformed_step_item_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(InvalidConversationError) as caught:
        parse_step_item(value)
    assert reason in caught.value.detail


def test_turns_end_with_each_message_of_the_assistant() -> None:
    assert split_turns(THREE) == [(1, THREE[:2]), (3, THREE[:4]), (5, THREE)]
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert split_turns({"messages": THREE, "tools": tools})[0] == (
        1,
        {"messages": THREE[:2], "tools": tools},
    )
    with pytest.raises(InvalidConversationError, match="last message has role 'user'"):
        split_turns([QUESTION])


@pytest.mark.parametrize(
    ("name", "others"), [("llama-v0.2", None), ("gemma2", None), ("qwen3", "message(s) 1 ")]
)
def test_turns_that_the_template_writes_differently_are_reported(
    name: str, others: str | None, encoder_of: Callable[[str], ChatEncoder]
) -> None:
    """The template of Qwen3 writes a thinking block only into the last turn."""
    turns = split_turns([QUESTION, ANSWER, QUESTION, ANSWER])
    encoder = encoder_of(name)
    warning = find_unshared_turns([(index, encoder.encode(turn)) for index, turn in turns])
    if others is None:
        assert warning is None
    else:
        assert warning is not None
        assert warning.startswith("turn_not_in_conversation: ")
        assert others in warning


def test_turns_of_a_cut_conversation_are_not_reported(
    encoder_of: Callable[[str], ChatEncoder],
) -> None:
    """Its tokens differ from those of its turns because it was cut."""
    turns = split_turns([QUESTION, ANSWER, QUESTION, ANSWER])
    encoder = encoder_of("llama-v0.2")
    limit = encoder.encode(turns[-1][1]).num_tokens - 4
    cut = [(index, encoder.encode(turn, "left", limit)) for index, turn in turns]
    assert [turn.truncated for _, turn in cut] == [False, True]
    assert find_unshared_turns(cut) is None
