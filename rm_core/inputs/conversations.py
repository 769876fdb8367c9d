"""Checks and shapes of what callers send: conversations, preference pairs, prompts and answers.

Pure data in, pure data out; knows no tokenizer. Everything a caller can get wrong about the shape
of a conversation is told here, with the index of the message that is wrong.

A conversation is a list of messages, or a mapping `{"messages": [...], "tools": [...]}` where the
template should render the functions that the assistant could call.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from rm_core.errors import InvalidConversationError

ROLES = ("system", "user", "assistant", "tool")

Messages = list[dict[str, Any]]
Tools: TypeAlias = list[dict[str, Any]]
"""JSON schemas of functions, as `apply_chat_template(..., tools=...)` takes them."""
ChatJson: TypeAlias = Messages | dict[str, Any]
"""A checked conversation as plain data: messages, or `{"messages": [...], "tools": [...]}`."""

_CHAT_KEYS = ("messages", "tools")
# Most lists and objects inside each other in JSON text; bodies over HTTP have the same limit.
_MAX_DEPTH = 100


@dataclass(frozen=True, slots=True)
class Chat:
    """A checked conversation.

    Attributes:
        messages: contents are strings; except in a prompt, the last message is the assistant's.
        tools: None renders the template without tools; an empty list is passed to the template.
    """

    messages: Messages
    tools: Tools | None = None

    def to_json(self) -> ChatJson:
        """The same as plain data: messages alone, or a mapping where there are tools."""
        if self.tools is None:
            return self.messages
        return {"messages": self.messages, "tools": self.tools}


def parse_chat(value: object) -> Chat:
    """Check a conversation: a list of messages, or a mapping of `messages` and `tools`.

    Raises:
        InvalidConversationError: the shape is wrong.
    """
    messages, tools = _split_tools(value, "conversation")
    return Chat(parse_conversation(messages), tools)


def parse_conversation(value: object) -> Messages:
    """Check a list of messages and flatten text parts into strings.

    Parts are joined without a separator, exactly as they were sent. Keys other than `role` and
    `content` stay as they are, for templates that read them (`tool_calls`, `name`, ...). A key of
    a message that is null, and an empty list of `tool_calls`, count as absent.

    Raises:
        InvalidConversationError: with what came, what is allowed and what to do.
    """
    messages = _parse_messages(value, "conversation")
    last = messages[-1]["role"]
    if last != "assistant":
        raise InvalidConversationError(
            f"the last message has role {last!r}; a reward is given to an answer, so the last "
            "message must be the assistant's: append the answer that is to be scored"
        )
    return messages


def parse_prompt(value: object) -> Messages:
    """A prompt as messages: a string is one user message.

    Raises:
        InvalidConversationError: with what came, what is allowed and what to do.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": validate_unicode(value, "prompt")}]
    return _parse_messages(value, "prompt")


def join(prompt: object, answer: object, what: str = "response") -> Messages:
    """The conversation that a prompt and one answer to it make.

    Args:
        prompt: a string, a list of messages, or None where the answer is a whole conversation.
        answer: a string (the assistant's text), or a list of messages: either what follows the
            prompt, or the whole conversation with the prompt repeated at its start.
        what: how messages of errors call the answer.

    Raises:
        InvalidConversationError: with what came, what is allowed and what to do.
    """
    if prompt is None:
        if isinstance(answer, str):
            raise InvalidConversationError(
                f"`{what}` is a string and there is no `prompt`; give the `prompt` it answers, or "
                f"make `{what}` a whole conversation (a list of messages)"
            )
        return parse_conversation(answer)
    return join_parsed(parse_prompt(prompt), answer, what)


def join_parsed(messages: Messages, answer: object, what: str = "response") -> Messages:
    """Like `join`, for a prompt that `parse_prompt` checked: once, where it has many answers.

    Raises:
        InvalidConversationError: with what came, what is allowed and what to do.
    """
    if isinstance(answer, str):
        return [*messages, {"role": "assistant", "content": validate_unicode(answer, what)}]
    answers = _parse_messages(answer, what)
    if answers[: len(messages)] == messages:
        return parse_conversation(answers)
    if answers[0]["role"] not in ("assistant", "tool"):
        raise InvalidConversationError(
            f"`{what}` starts with a message of role {answers[0]['role']!r} that is not the start "
            f"of `prompt`; give either only what follows the prompt, or the whole conversation "
            "with the same prompt, or leave `prompt` out"
        )
    return parse_conversation([*messages, *answers])


def parse_pair(value: object) -> tuple[ChatJson, ChatJson]:
    """The two conversations (chosen, rejected) of a preference record.

    `tools` may be given in the record, with `prompt`, or with each whole conversation.

    Raises:
        InvalidConversationError: the shape is wrong.
    """
    record = _require_mapping(value, "pair", ("chosen", "rejected"))
    tools = parse_tools(record.get("tools"))
    prompt = parse_prompt_chat(record.get("prompt"))
    chosen, rejected = (
        join_chat(prompt, record[name], name, tools) for name in ("chosen", "rejected")
    )
    return chosen, rejected


def parse_prompt_chat(value: object) -> Chat | None:
    """Like `parse_prompt`, for a prompt that may be a mapping with `tools`; None stays None.

    Raises:
        InvalidConversationError: the shape is wrong.
    """
    if value is None:
        return None
    messages, tools = _split_tools(value, "prompt")
    return Chat(parse_prompt(messages), tools)


def join_chat(
    prompt: Chat | None, answer: object, what: str = "response", tools: Tools | None = None
) -> ChatJson:
    """Like `join`, for a prompt that may have `tools` and an answer that may bring its own.

    Args:
        prompt: from `parse_prompt_chat`: once, where it has many answers.
        answer: see `join`.
        what: how messages of errors call the answer.
        tools: checked ones that were given for prompt and answer.

    Raises:
        InvalidConversationError: also where two lists of tools were given and differ.
    """
    answer, own = _split_tools(answer, what)
    of_prompt = None if prompt is None else prompt.tools
    given = [one for one in (tools, of_prompt, own) if one is not None]
    if any(one != given[0] for one in given):
        raise InvalidConversationError(
            f"`tools` were given twice for `{what}`, and the two lists differ; give them once"
        )
    if prompt is None:
        messages = join(None, answer, what)
    else:
        messages = join_parsed(prompt.messages, answer, what)
    return Chat(messages, given[0] if given else None).to_json()


def parse_tools(value: object) -> Tools | None:
    """Check the functions that a conversation offers.

    Args:
        value: a list of objects; or JSON text of such a list, as tables carry it; or a list of
            such JSON texts. None, blank text and JSON's null mean that there are none.

    Raises:
        InvalidConversationError: the shape is wrong.
    """
    if isinstance(value, str):
        value = None if not value.strip() else _read_json(value, "`tools`")
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise InvalidConversationError(f"`tools` is {_describe_type(value)}; {_TOOLS_HINT}")
    return [_parse_tool(tool, index) for index, tool in enumerate(value)]


def add_tools(conversation: object, tools: object) -> object:
    """The conversation with these tools, unless it has its own.

    Args:
        conversation: as it was sent, of whatever shape; other values are returned unchanged.
        tools: None adds nothing.
    """
    if tools is None:
        return conversation
    if isinstance(conversation, list | tuple):
        return {"messages": conversation, "tools": tools}
    if isinstance(conversation, Mapping) and conversation.get("tools") is None:
        return {**conversation, "tools": tools}
    return conversation


def get_messages(conversation: object) -> object:
    """The messages of a conversation as it was sent, unchecked."""
    if isinstance(conversation, Mapping) and "messages" in conversation:
        return conversation["messages"]
    return conversation


def drop_nulls(value: Any) -> Any:
    """The value without keys that are null, at every depth; items of lists stay.

    Tables give every row the keys of all rows, null where a row lacks one, and chat templates ask
    whether a key is there. Arrays and scalars of numpy become lists and plain values.

    Raises:
        RecursionError: the value is nested too deeply, or contains itself.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [drop_nulls(item) for item in value]
    return drop_nulls(value.tolist()) if hasattr(value, "tolist") else value


def parse_arguments(messages: object) -> Any:
    """Messages with the `arguments` of tool calls as objects, as vLLM gives them to a template.

    OpenAI's clients send `arguments` as JSON text. Missing, null and empty ones become `{}`.

    Args:
        messages: as they were sent; what has another shape stays as it is.

    Raises:
        InvalidConversationError: a text is not JSON of an object; it names the message.
    """
    if not isinstance(messages, list):
        return messages
    return [_parse_message_arguments(message, index) for index, message in enumerate(messages)]


def _parse_message_arguments(message: Any, index: int) -> Any:
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    if not isinstance(calls, list) or message.get("role") != "assistant":
        return message
    where = f"`arguments` of message {index}"
    return {**message, "tool_calls": [_parse_call_arguments(call, where) for call in calls]}


def _parse_call_arguments(call: Any, where: str) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments:
        parsed = _read_json(arguments, where)
        if not isinstance(parsed, dict):
            raise InvalidConversationError(
                f"{where} is JSON text of {_describe_type(parsed)}; send an object, or JSON text of one"
            )
        arguments = parsed
    elif arguments is None or arguments == "":
        arguments = {}
    return {**call, "function": {**function, "arguments": arguments}}


def validate_unicode(text: str, where: str) -> str:
    """The text itself, if it is valid Unicode.

    Raises:
        InvalidConversationError: it has half of a surrogate pair; `where` begins the message.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidConversationError(
            f"{where} has a lone surrogate at character {error.start}, which is no valid Unicode; "
            "send well-formed text (half of an emoji was probably cut off)"
        ) from None
    return text


def _split_tools(value: object, what: str) -> tuple[object, Tools | None]:
    """Messages and checked tools of what was sent."""
    if not isinstance(value, Mapping) or "messages" not in value:
        return value, None
    unknown = sorted(str(key) for key in value if key not in _CHAT_KEYS)
    if unknown:
        raise InvalidConversationError(
            f"the {what} has {_format_first_names(unknown)}, which would not be rendered; only `messages` and "
            "`tools` are taken, so leave the rest out"
        )
    return value["messages"], parse_tools(value.get("tools"))


_TOOLS_HINT = (
    "it must be a list of functions such as "
    '[{"type": "function", "function": {"name": "...", "parameters": {...}}}]'
)


def _parse_tool(tool: object, index: int) -> dict[str, Any]:
    if isinstance(tool, str):
        tool = _read_json(tool, f"tool {index}")
    if not isinstance(tool, Mapping):
        raise InvalidConversationError(
            f"tool {index} is {_describe_type(tool)}; `tools`: {_TOOLS_HINT}"
        )
    return dict(tool)


def _read_json(text: str, where: str) -> Any:
    try:
        value = _JSON.decode(text)
        if _is_deeper(value, _MAX_DEPTH):
            raise RecursionError
    except RecursionError:
        raise InvalidConversationError(
            f"{where} is JSON text with more than {_MAX_DEPTH} lists and objects inside each "
            "other; flatten it"
        ) from None
    except ValueError as error:
        raise InvalidConversationError(
            f"{where} is text that cannot be read as JSON ({str(error)[:100]}); send the value "
            "itself, or valid JSON text"
        ) from None
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return any(isinstance(node, dict | list) for node in level)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def _parse_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large for a double")
    return number


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key[:40]!r} occurs twice in one object")
    return found


# As strict as bodies over HTTP and rows of files.
_JSON = json.JSONDecoder(
    object_pairs_hook=_parse_object, parse_constant=_refuse_constant, parse_float=_parse_float
)


def _require_mapping(value: object, what: str, needed: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidConversationError(
            f"a {what} must be an object with {_format_names(needed)}, got {_describe_type(value)}"
        )
    missing = [name for name in needed if value.get(name) is None]
    if missing:
        raise InvalidConversationError(
            f"the {what} has no {_format_names(missing)}; it has {_format_first_names(sorted(map(str, value)))}"
        )
    return value


def _parse_messages(value: object, what: str) -> Messages:
    whole = what == "conversation"  # a prompt or an answer may be a string as well
    if isinstance(value, str | Mapping) or not isinstance(value, list | tuple):
        came = _describe_type(value)
        if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
            came += " that looks like JSON; send the list itself (`json.loads` of that text)"
        raise InvalidConversationError(
            f"the {what} is {came}; it must be {'' if whole else 'a string or '}"
            "a list of messages such as "
            '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
            + (', or {"messages": [...], "tools": [...]}' if whole else "")
        )
    if not value:
        raise InvalidConversationError(
            f"the {what} is empty; give at least one message"
            + ("" if what == "prompt" else ", the last one the assistant's")
        )
    return [_parse_message(message, index) for index, message in enumerate(value)]


def _parse_message(message: object, index: int) -> dict[str, Any]:
    where = f"message {index}"
    if not isinstance(message, Mapping):
        raise InvalidConversationError(
            f"{where} is {_describe_type(message)}; it must be an object with `role` and `content`"
        )
    role = message.get("role")
    if role is None:
        raise InvalidConversationError(f"{where} has no `role`; allowed: {', '.join(ROLES)}")
    if role not in ROLES:
        raise InvalidConversationError(
            f"{where} has the role {_shorten(role)}; allowed: {', '.join(ROLES)}"
        )
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    kept = {key: value for key, value in message.items() if value is not None}
    if isinstance(kept.get("tool_calls"), list | tuple) and not kept["tool_calls"]:
        del kept["tool_calls"]
    return {**kept, "role": role, "content": _flatten(content, where)}


def _flatten(content: object, where: str) -> str:
    if isinstance(content, str):
        return validate_unicode(content, where)
    if content is None:
        raise InvalidConversationError(
            f'{where} has no `content`; give a string ("" for an empty answer) or text parts'
        )
    if not isinstance(content, list | tuple):
        raise InvalidConversationError(
            f"{where} has content that is {_describe_type(content)}; it must be a string or a list of "
            'text parts such as {"type": "text", "text": "..."}'
        )
    return "".join(_part_text(part, f"part {i} of {where}") for i, part in enumerate(content))


def _part_text(part: object, where: str) -> str:
    if isinstance(part, str):
        return validate_unicode(part, where)
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return validate_unicode(text, where)
    kind = part.get("type") if isinstance(part, Mapping) else None
    came = f"of type {_shorten(kind)}" if kind not in (None, "text") else "not a text part"
    raise InvalidConversationError(
        f'{where} is {came}; only text is scored: {{"type": "text", "text": "..."}}'
    )


def _describe_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _format_first_names(names: list[str]) -> str:
    """The first of a caller's own names, which may be many and of any length."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (
        _format_names([name if len(name) <= 40 else name[:37] + "..." for name in names[:8]]) + more
    )


def _format_names(names: object) -> str:
    assert isinstance(names, list | tuple)
    return ", ".join(f"`{name}`" for name in names) or "nothing"
