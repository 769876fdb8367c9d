"""Convert turns in the formats of other tools to messages with role and content.

Supported are ShareGPT's `from` and `value`, ms-swift's `human` and `assistant`, structs of lists,
Alpaca's `history`, lists as JSON text, and keys that are null because a table has them for other
rows. Other values are returned unchanged, and `rm_core` refuses them.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from rm_core import InvalidConversationError, drop_nulls, parse_prompt, parse_tools
from rm_core.inputs.conversations import Messages, Tools, validate_unicode
from rm_core.strict_json import parse_strict

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
"""Roles of ShareGPT's speakers; other names are roles already."""

_QUESTIONS = ("human", "user", "question", "query", "instruction", "prompt", "input")
_ANSWERS = ("assistant", "gpt", "bot", "answer", "response", "output", "completion")
_TURN_KEYS = frozenset(["role", "from", *_QUESTIONS])
_SHAREGPT_KEYS = frozenset(["role", "from", "value", "content", "weight", "loss"])
"""Keys of ShareGPT's turns that are read, or that concern only training."""
_PYTHON_LIST = re.compile(r"\s*\[\s*\{\s*'")
_MAX_SHOWN = 60


def normalize_messages(value: Any) -> Any:
    """Convert turns in any supported format to a list of messages; return text unchanged."""
    if isinstance(value, Mapping):
        turns = _transpose(value)
        if turns is not None:
            return normalize_messages(turns)
        return [_normalize_message(value)] if "from" in value or "role" in value else value
    if isinstance(value, list):
        if value and all(_is_exchange(turn) for turn in value):
            return [message for turn in value for message in _split_exchange(turn)]
        return [_normalize_message(turn) for turn in value]
    return value


def load_messages(value: Any) -> Any:
    """Like `normalize_messages`, and read JSON text of messages, as in a column of messages."""
    turns = parse_json_turns(value) if isinstance(value, str) else None
    return normalize_messages(value) if turns is None else turns


def parse_json_turns(text: str) -> list[Any] | None:
    """Return the messages of a text that is a JSON or Python list of messages, else None."""
    if not text[:64].lstrip().startswith("["):
        return None
    value = _load_json(text)
    if value is None and _PYTHON_LIST.match(text):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            value = ast.literal_eval(text.strip())
    if not isinstance(value, list) or not value:
        return None
    pairs = ({"role", "content"}, {"from", "value"})
    for turn in value:
        if not isinstance(turn, Mapping) or not any(pair <= turn.keys() for pair in pairs):
            return None
    return [_normalize_message(turn) for turn in value]


def has_function_calls(value: Any) -> bool:
    """Return whether ShareGPT turns have a function call, which is text in that format."""
    if isinstance(value, Mapping):
        speakers = value.get("from")
        return "function_call" in (speakers if isinstance(speakers, list) else [speakers])
    if isinstance(value, list):
        return any(isinstance(turn, Mapping) and has_function_calls(turn) for turn in value)
    return False


def parse_history(value: Any) -> Messages:
    """Parse Alpaca's `history`, which has earlier questions with their answers.

    Args:
        value: a list of `[question, answer]`, of objects with a question and an answer, or of
            messages; also as JSON text.

    Raises:
        InvalidConversationError: `value` has another shape.
    """
    turns = value
    if isinstance(value, str):
        turns = _load_json(value) if value.strip() else []
    if isinstance(turns, Mapping):
        turns = _transpose(turns)
    if not isinstance(turns, list):
        raise _history_error(value)
    messages: Messages = []
    for turn in turns:
        if isinstance(turn, Mapping) and not _is_exchange(turn):
            if not {"role", "from"} & turn.keys():
                raise _history_error(turn)
            messages += _parse_history_message(turn)
            continue
        exchange = [*turn.values()] if isinstance(turn, Mapping) else turn
        if isinstance(turn, Mapping):
            exchange = [message["content"] for message in _split_exchange(turn)]
        if not isinstance(exchange, list | tuple) or len(exchange) != 2:
            raise _history_error(turn)
        for role, content in zip(("user", "assistant"), exchange, strict=True):
            if not isinstance(content, str):
                raise _history_error(turn)
            messages.append({"role": role, "content": validate_unicode(content, "`history`")})
    return messages


def _parse_history_message(turn: Any) -> Messages:
    try:
        return parse_prompt([_normalize_message(turn)])
    except InvalidConversationError as error:
        raise InvalidConversationError(
            f"`history`: {error.detail}; the turn is {_short(turn)} (--history-column '' ignores "
            "the column)"
        ) from error


def read_tools(value: Any) -> Tools | None:
    """Read function definitions for the chat template; return None if there are none.

    Args:
        value: a list of objects or a struct of lists, in which keys that are null are dropped; or
            JSON text of a list, in which null keys are kept. Null and blank text mean no functions;
            an empty list is passed to the template, as TRL does.

    Raises:
        InvalidConversationError: `value` has another shape.
    """
    if not isinstance(value, str):
        value = _drop_nulls_and_maps(value)
        if isinstance(value, Mapping):
            transposed = _transpose(value, ("type", "function", "name"))
            value = value if transposed is None else drop_nulls(transposed)
    try:
        return parse_tools(value)
    except InvalidConversationError as error:
        raise InvalidConversationError(
            f"{error.detail} (--tools-column '' ignores the column)"
        ) from error


def _drop_nulls_and_maps(value: Any) -> Any:
    """Drop null keys of a value and convert Arrow maps to objects."""
    return drop_nulls(_convert_maps(value))


def _convert_maps(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _convert_maps(item) for key, item in value.items()}
    if isinstance(value, list):
        # Only a map of Arrow becomes a list of tuples.
        if value and all(isinstance(item, tuple) and len(item) == 2 for item in value):
            return _convert_maps(dict(value))
        return [_convert_maps(item) for item in value]
    return value


def _normalize_message(turn: Any) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    if turn.get("role") is None and "from" in turn:
        speaker = turn["from"]
        role = ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
        others = {key: item for key, item in turn.items() if key not in _SHAREGPT_KEYS}
        message = {"role": role, "content": turn.get("value")}
        return {**message, **_normalize_keys(others)} if others else message
    if len(turn) > 2:  # rm_core checks role and content
        return _normalize_keys(turn)
    return turn


def _normalize_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the keys of a message to the form that templates read."""
    normalized: dict[str, Any] = _drop_nulls_and_maps(keys)
    if "tool_calls" in normalized:
        normalized["tool_calls"] = _normalize_tool_calls(normalized["tool_calls"])
    return normalized


def _normalize_tool_calls(calls: Any) -> Any:
    """Convert tool calls to a list, also from a struct of lists or from JSON text."""
    if isinstance(calls, Mapping):
        if not calls:  # all keys were null
            return []
        objects = _transpose(calls, {"id", "type", "function", "name", "arguments"})
        return calls if objects is None else drop_nulls(objects)
    if isinstance(calls, str):
        if calls.strip() in ("", "null"):
            return []
        parsed = _load_json(calls)
        return parsed if isinstance(parsed, list) else calls
    return calls


def _transpose(value: Mapping[str, Any], names: Collection[str] = _TURN_KEYS) -> list[Any] | None:
    """Convert a struct of lists, as `datasets` stores a sequence of objects, to a list of objects.

    Args:
        value: the struct.
        names: keys; without any of them, the result is None.
    """
    lists = {key: item for key, item in value.items() if item is not None}
    if not set(names) & lists.keys() or not all(isinstance(item, list) for item in lists.values()):
        return None
    if len({len(item) for item in lists.values()}) != 1:
        return None
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def _is_exchange(turn: Any) -> bool:
    """Return whether an object is a question with its answer, each under its own key."""
    if not isinstance(turn, Mapping) or {"role", "content", "from", "value"} & turn.keys():
        return False
    names = {key for key, item in turn.items() if item is not None}
    questions, answers = names & {*_QUESTIONS, "tool"}, names & set(_ANSWERS)
    return (
        len(questions) <= 1 and len(answers) <= 1 and names == questions | answers and bool(names)
    )


def _split_exchange(turn: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, content in sorted(turn.items(), key=lambda item: item[0] in _ANSWERS):
        if content is not None:
            role = "assistant" if key in _ANSWERS else "tool" if key == "tool" else "user"
            yield {"role": role, "content": content}


def _load_json(text: str) -> Any:
    """Parse JSON text; return None if it is not JSON, or if an object has a key twice."""
    with contextlib.suppress(ValueError, RecursionError):
        return parse_strict(text, finite=False)
    return None


def _history_error(value: Any) -> InvalidConversationError:
    return InvalidConversationError(
        f"`history` has {_short(value)}; it must be a list of [question, answer], both text: "
        "correct it, or ignore the column with --ignore-column"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
