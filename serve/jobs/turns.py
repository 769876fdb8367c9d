r"""Convert turns in the formats of other tools to messages with role and content.

Supported are ShareGPT's `from` and `value`, ms-swift's `human` and `assistant`, structs of lists,
Alpaca's `history`, lists as JSON text, and keys that are null because a table has them for other
rows. Other values are returned unchanged, and `rm_core` refuses them.

Transcripts are text with several turns. Four kinds are known, by the marker that begins a turn:

- `\n\nHuman:` and `\n\nAssistant:` (Anthropic's HH, Nectar)
- `<extra_id_1>User` and `<extra_id_1>Assistant` (HelpSteer2)
- `### Human:` and `### Assistant:` (Guanaco)
- `USER:` and `ASSISTANT:` (Vicuna)

`auto` reads only the first kind, and only if the whole text is such a transcript, because other
text does not look like that. `read` reads all kinds. `keep` reads none: all text is scored
unchanged.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rm_core import InvalidConversationError, drop_nulls, parse_prompt, parse_tools
from rm_core.inputs.conversations import Messages, Tools, validate_unicode
from rm_core.strict_json import parse_strict
from rm_core.text import quote

TranscriptMode: TypeAlias = Literal["auto", "read", "keep"]

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

_HH_START = re.compile(r"(?:\r?\n){2}Human:")


@dataclass(frozen=True, slots=True)
class _TranscriptFormat:
    """A kind of transcript.

    Attributes:
        start: pattern for the beginning of a text of this kind.
        turn: pattern for the beginning of a turn; its group is the speaker.
        unmarked_role: role of the text before the first turn; None if no such text may occur.
        end: marker that follows a turn of the assistant, or empty.
    """

    start: str
    turn: str
    unmarked_role: str | None = None
    end: str = ""


_HH = _TranscriptFormat(r"\s*Human:", r"(?:\A\s*|(?:\r?\n){2})(Human|Assistant):")
_FORMATS = (
    _HH,
    _TranscriptFormat(
        r"\s*<extra_id_0>System\r?\n|(?s:.*?)<extra_id_1>(?:User|Assistant)\r?\n",
        r"(?:\r?\n)?<extra_id_[01]>(System|User|Assistant)\r?\n",
        unmarked_role="user",
    ),
    _TranscriptFormat(r"\s*### (?:Human|System):", r"### (Human|Assistant|System):"),
    _TranscriptFormat(
        r"(?s:.*?)\bUSER:(?s:.*)\bASSISTANT:",
        r"(?:\A\s*|\s|(?<=</s>))(USER|ASSISTANT):",
        unmarked_role="system",
        end="</s>",
    ),
)
_SPEAKER_ROLES = {"human": "user", "user": "user", "assistant": "assistant", "system": "system"}


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
        exchange = turn
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
            f"`history`: {error.detail}; the turn is {quote(turn)} (--history-column '' ignores "
            "the column)"
        ) from error


def read_tools(value: Any) -> Tools | None:
    """Read function definitions for the chat template; return None if there are none.

    Args:
        value: a list of objects or a struct of lists, in which keys that are null are dropped; or
            JSON text of a list, in which null keys are kept. Null and blank text mean no functions;
            an empty list is passed to the template, as TRL does.
    """
    if not isinstance(value, str):
        value = drop_nulls(_convert_maps(value))
        if isinstance(value, Mapping):
            transposed = _transpose(value, ("type", "function", "name"))
            value = value if transposed is None else drop_nulls(transposed)
    try:
        return parse_tools(value)
    except InvalidConversationError as error:
        raise InvalidConversationError(
            f"{error.detail} (--tools-column '' ignores the column)"
        ) from error


def _convert_maps(value: Any) -> Any:
    """Convert Arrow maps within a value to objects."""
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
    normalized: dict[str, Any] = drop_nulls(_convert_maps(keys))
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

    Return None for a struct with none of the keys `names`.
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
        f"`history` has {quote(value)}; it must be a list of [question, answer], both text: "
        "correct it, or ignore the column with --ignore-column"
    )


def parse_prompt_transcript(text: str, mode: TranscriptMode) -> tuple[Messages, str] | None:
    """Return the turns of a prompt, or None if the prompt is plain text.

    The second value is the beginning of the answer, often empty, with its trailing white space.
    """
    turns = _parse(text, mode)
    if turns is None:
        return None
    if turns[-1]["role"] != "assistant":
        return turns, ""
    opening = turns[-1]["content"]
    return turns[:-1], opening and opening + text[len(text.rstrip()) :]


def parse_transcript(text: str, mode: TranscriptMode) -> Messages | None:
    """Return the turns of a conversation that ends with the assistant, or None for other text."""
    turns = _parse(text, mode)
    if turns is None or turns[-1]["role"] == "assistant":
        return turns
    if mode == "auto":
        return None
    raise InvalidConversationError(
        "the transcript does not end with an answer, so there is nothing to score; it must end "
        "with a turn of the assistant"
    )


def _parse(text: str, mode: TranscriptMode) -> Messages | None:
    kind = _find_format(text, mode)
    if kind is None:
        return None
    before, *fields = re.split(kind.turn, text)
    turns = [
        (_SPEAKER_ROLES[speaker.lower()], content)
        for speaker, content in zip(fields[::2], fields[1::2], strict=True)
    ]
    if before.strip():
        if kind.unmarked_role is None:
            return None
        turns.insert(0, (kind.unmarked_role, before))
    if not any(role == "user" for role, _ in turns):
        return None
    messages = []
    for role, content in turns:
        if "<extra_id_" in content and kind.unmarked_role == "user":
            raise InvalidConversationError(
                "the transcript has an <extra_id_...> that does not begin a turn (it may be a "
                "label of an answer); remove it from the text"
            )
        text_of_turn = content.strip()
        if kind.end and role == "assistant":
            text_of_turn = text_of_turn.removesuffix(kind.end).rstrip()
        messages.append({"role": role, "content": validate_unicode(text_of_turn, "the transcript")})
    return messages


def _find_format(text: str, mode: TranscriptMode) -> _TranscriptFormat | None:
    if mode == "auto":
        return _HH if _HH_START.match(text) else None
    if mode == "read":
        return next((kind for kind in _FORMATS if re.match(kind.start, text)), None)
    return None
