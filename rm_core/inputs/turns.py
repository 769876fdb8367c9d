"""Split a conversation into the conversations up to each answer, for rewards of turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rm_core.inputs.conversations import ChatJson, parse_chat
from rm_core.text import format_names
from rm_core.types import Encoded


def split_turns(conversation: object) -> list[tuple[int, ChatJson]]:
    """Return the conversation up to each message of the assistant, and the message's index."""
    chat = parse_chat(conversation)
    return [
        (index, replace(chat, messages=chat.messages[: index + 1]).to_json())
        for index, message in enumerate(chat.messages)
        if message["role"] == "assistant"
    ]


def find_unshared_turns(turns: Sequence[tuple[int, Encoded]]) -> str | None:
    """Return a warning if a turn is written in another way where the conversation goes on.

    Some chat templates write the last turn differently, such as Qwen3's, with a thinking block. Of
    the encoded turns, the last is the whole conversation.
    """
    whole = turns[-1][1]
    others = [
        index for index, turn in turns if turn.input_ids != whole.input_ids[: turn.num_tokens]
    ]
    if whole.truncated or not others:  # of a cut conversation, other tokens are gone
        return None
    return (
        f"turn_not_in_conversation: the chat template writes message(s) {format_names(others)} "
        "differently at the end of a conversation, so `turn_rewards` has their rewards as last "
        "messages, and not at their positions in the whole conversation"
    )
