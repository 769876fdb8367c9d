"""Turns of a conversation as other tools write them, made into messages with role and content.

Knows ShareGPT's `from` and `value`, a struct of lists, and keys that are null because a table has
them for other rows. What cannot be made sense of is left for `rm_core` to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rm_core import drop_nulls

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""Who speaks, in ShareGPT's words and ours; other words mean the same in both."""


def as_messages(value: Any) -> Any:
    """Text as it is, and everything that is turns as a list of messages."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        role, content = value.get("role"), value.get("content")
        if isinstance(role, list) and isinstance(content, list) and len(role) == len(content):
            pairs = zip(role, content, strict=True)
            return [{"role": role, "content": content} for role, content in pairs]
        return [_as_message(value)] if "from" in value or "role" in value else value
    if isinstance(value, list):
        return [_as_message(turn) for turn in value]
    return value


def _as_message(turn: Any) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    if turn.get("role") is None and "from" in turn:
        speaker = turn["from"]
        role = ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
        return {"role": role, "content": turn.get("value")}
    if len(turn) > 2:  # role and content are looked at by rm_core
        return drop_nulls(turn)
    return turn
