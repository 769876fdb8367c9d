"""Turns of a conversation as other tools write them, made into messages with role and content.

Knows ShareGPT's `from` and `value`, ms-swift's `human` and `assistant`, structs of lists, Alpaca's
`history`, lists as JSON text, and keys that are null because a table has them for other rows. What
cannot be made sense of is left for `rm_core` to refuse.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from rm_core import InvalidConversationError, drop_nulls, parse_prompt, parse_tools
from rm_core.inputs.conversations import Messages, Tools, validate_unicode

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

_QUESTIONS = ("human", "user", "question", "query", "instruction", "prompt", "input")
_ANSWERS = ("assistant", "gpt", "bot", "answer", "response", "output", "completion")
_TURN_KEYS = frozenset(["role", "from", *_QUESTIONS])
_SHAREGPT_KEYS = frozenset(["role", "from", "value", "content", "weight", "loss"])
"""Keys of ShareGPT's turns that are read, or that only training reads."""
_PYTHON_LIST = re.compile(r"\s*\[\s*\{\s*'")
_MAX_SHOWN = 60


def normalize_messages(value: Any) -> Any:
    """Text as it is, and everything that is turns as a list of messages."""
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
    """As `normalize_messages`, for a column of messages: JSON text of them is messages there too."""
    turns = parse_json_turns(value) if isinstance(value, str) else None
    return normalize_messages(value) if turns is None else turns


def parse_json_turns(text: str) -> list[Any] | None:
    """The messages that a text holds as a list in JSON, or as Python prints it; else None."""
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
    """Whether turns in ShareGPT's form have a call of a function, which is text there."""
    if isinstance(value, Mapping):
        speakers = value.get("from")
        return "function_call" in (speakers if isinstance(speakers, list) else [speakers])
    if isinstance(value, list):
        return any(isinstance(turn, Mapping) and has_function_calls(turn) for turn in value)
    return False


def parse_history(value: Any) -> Messages:
    """The messages of Alpaca's `history`: earlier questions, each with its answer.

    Args:
        value: a list of `[question, answer]`, of objects with a question and an answer, or of
            messages; also as JSON text.

    Raises:
        InvalidConversationError: it has another shape.
    """
    found = value
    if isinstance(value, str):
        found = _load_json(value) if value.strip() else []
    if isinstance(found, Mapping):
        found = _transpose(found)
    if not isinstance(found, list):
        raise _history_error(value)
    messages: Messages = []
    for turn in found:
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
            f"`history`: {error.detail}; the turn is {_short(turn)} (--history-column '' leaves "
            "the column aside)"
        ) from error


def read_tools(value: Any) -> Tools | None:
    """The functions that a template is to write; None where there are none.

    Args:
        value: a list of objects or a struct of lists, in which keys that are null are left out; or
            JSON text of a list, in which they stay. Null and blank text are none; an empty list is
            given to the template, as TRL does.

    Raises:
        InvalidConversationError: it has another shape.
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
            f"{error.detail} (--tools-column '' leaves the column aside)"
        ) from error


def _drop_nulls_and_maps(value: Any) -> Any:
    """A value without the keys that are null, with maps of Arrow as objects."""
    return drop_nulls(_convert_maps(value))


def _convert_maps(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _convert_maps(item) for key, item in value.items()}
    if isinstance(value, list):
        # Arrow gives a map as a list of tuples, which it gives for nothing else.
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
    if len(turn) > 2:  # role and content are looked at by rm_core
        return _normalize_keys(turn)
    return turn


def _normalize_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a message as templates read them."""
    found: dict[str, Any] = _drop_nulls_and_maps(keys)
    if "tool_calls" in found:
        found["tool_calls"] = _normalize_tool_calls(found["tool_calls"])
    return found


def _normalize_tool_calls(calls: Any) -> Any:
    """Calls of tools as a list, also where a table has a struct of lists or JSON text of them."""
    if isinstance(calls, Mapping):
        if not calls:  # all of its keys were null
            return []
        turns = _transpose(calls, {"id", "type", "function", "name", "arguments"})
        return calls if turns is None else drop_nulls(turns)
    if isinstance(calls, str):
        if calls.strip() in ("", "null"):
            return []
        found = _load_json(calls)
        return found if isinstance(found, list) else calls
    return calls


def _transpose(value: Mapping[str, Any], names: Collection[str] = _TURN_KEYS) -> list[Any] | None:
    """The objects of a struct of lists, as `datasets` stores a sequence of objects.

    Args:
        value: the struct.
        names: keys of which it must have one.
    """
    lists = {key: item for key, item in value.items() if item is not None}
    if not set(names) & lists.keys() or not all(isinstance(item, list) for item in lists.values()):
        return None
    if len({len(item) for item in lists.values()}) != 1:
        return None
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def _is_exchange(turn: Any) -> bool:
    """Whether an object is a question and its answer, each under its own key."""
    if not isinstance(turn, Mapping) or {"role", "content", "from", "value"} & turn.keys():
        return False
    filled = {key for key, item in turn.items() if item is not None}
    asked, answered = filled & {*_QUESTIONS, "tool"}, filled & set(_ANSWERS)
    return len(asked) <= 1 and len(answered) <= 1 and filled == asked | answered and bool(filled)


def _split_exchange(turn: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, content in sorted(turn.items(), key=lambda item: item[0] in _ANSWERS):
        if content is not None:
            role = "assistant" if key in _ANSWERS else "tool" if key == "tool" else "user"
            yield {"role": role, "content": content}


def _load_json(text: str) -> Any:
    """The value of a JSON text; None where it is not JSON, or an object has a key twice."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text, object_pairs_hook=_parse_object)
    return None


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _history_error(value: Any) -> InvalidConversationError:
    return InvalidConversationError(
        f"`history` has {_short(value)}; it must be a list of [question, answer], each of them "
        "text: correct it, or leave the column aside with --ignore-column"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
