"""Validate and normalize the input of callers: conversations, preference pairs, prompts, answers.

Pure functions on plain data, without a tokenizer. They report every error in the shape of a
conversation as `InvalidConversationError`, with the index of the message.

A conversation is a list of messages, or a mapping `{"messages": [...], "tools": [...]}` if the
template should render the functions that the assistant could call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from rm_core.errors import InvalidConversationError
from rm_core.strict_json import describe_error, parse_strict
from rm_core.text import describe_type, format_keys, quote

ROLES = ("system", "user", "assistant", "tool")

Messages = list[dict[str, Any]]
Tools: TypeAlias = list[dict[str, Any]]
"""JSON schemas of functions, as in `apply_chat_template(..., tools=...)`."""
ChatJson: TypeAlias = Messages | dict[str, Any]
"""A validated conversation as plain data: messages, or `{"messages": [...], "tools": [...]}`."""

Content: TypeAlias = str | list[dict[str, Any]]
"""Content of a validated message: text, or parts in order, of which at least one is an image:
`{"type": "text", "text": ...}`, `{"type": "image", "image": SOURCE}`."""

_CHAT_KEYS = ("messages", "tools")
# The last two are of OpenAI's responses.
_TEXT_TYPES = (None, "text", "input_text", "output_text")
# Types of image parts, each with its key.
_IMAGE_KEYS = {"image": "image", "image_url": "image_url", "input_image": "image_url"}
_IMAGE_HINT = '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'


@dataclass(frozen=True, slots=True)
class Chat:
    """A validated conversation."""

    # Messages with contents as `Content`. Except in a prompt, the last message is the assistant's.
    messages: Messages
    # Tools for the template. None renders the template without tools; an empty list is passed to
    # the template.
    tools: Tools | None = None

    def to_json(self) -> ChatJson:
        """Return the conversation as plain data: only messages, or a mapping if there are tools."""
        if self.tools is None:
            return self.messages
        return {"messages": self.messages, "tools": self.tools}


def parse_chat(value: object) -> Chat:
    """Validate a conversation: a list of messages, or a mapping of `messages` and `tools`."""
    messages, tools = _split_tools(value, "conversation")
    return Chat(parse_conversation(messages), tools)


def parse_conversation(value: object) -> Messages:
    """Validate a list of messages and join text parts into strings.

    Text parts are joined unchanged and without a separator, up to an image. Keys other than `role`
    and `content` are kept for templates that read them (`tool_calls`, `name`, ...). Null values and
    an empty list of `tool_calls` count as absent.
    """
    messages = _parse_messages(value, "conversation")
    last = messages[-1]["role"]
    if last != "assistant":
        raise InvalidConversationError(
            f"the last message has role {last!r}; a reward is given to an answer, so the last "
            "message must be the assistant's: append the answer to be scored"
        )
    return messages


def split_answer(conversation: object, reader: str, names: tuple[str, str]) -> tuple[Messages, str]:
    """Return the prompt and the text of the last turn, of a model that reads text alone.

    In errors, `reader` is the model, such as `a judge`, and `names` what it reads.
    """
    chat = parse_chat(conversation)
    refuse_images(chat.messages, reader)
    *prompt, answer = chat.messages
    if not prompt:
        raise InvalidConversationError(
            f"the conversation is only an answer; give the {names[0]} before it"
        )
    if chat.tools or answer.get("tool_calls"):
        raise InvalidConversationError(
            f"the conversation has tools or tool calls, which {reader} does not read; send the "
            f"{names[1]} as text"
        )
    return prompt, answer["content"]


def parse_prompt(value: object) -> Messages:
    """Validate a prompt, and return it as messages. A string becomes one user message."""
    if isinstance(value, str):
        return [{"role": "user", "content": validate_unicode(value, "prompt")}]
    return _parse_messages(value, "prompt")


def join(prompt: object, answer: object, what: str = "response") -> Messages:
    """Join a prompt and an answer to one conversation.

    Args:
        prompt: a string, a list of messages, or None if the answer is a whole conversation.
        answer: a string (the assistant's text), or a list of messages: either the messages after
            the prompt, or the whole conversation including the prompt.
        what: name of the answer in error messages.
    """
    if prompt is None:
        if isinstance(answer, str):
            raise InvalidConversationError(
                f"`{what}` is a string without a `prompt`; give the `prompt` it answers, or make "
                f"`{what}` a whole conversation (a list of messages)"
            )
        return parse_conversation(answer)
    return join_parsed(parse_prompt(prompt), answer, what)


def join_parsed(messages: Messages, answer: object, what: str = "response") -> Messages:
    """Like `join`, with the messages of `parse_prompt`, to validate a prompt only once."""
    if isinstance(answer, str):
        return [*messages, {"role": "assistant", "content": validate_unicode(answer, what)}]
    answers = _parse_messages(answer, what)
    if answers[: len(messages)] == messages:
        return parse_conversation(answers)
    if answers[0]["role"] not in ("assistant", "tool"):
        raise InvalidConversationError(
            f"`{what}` starts with a message of role {answers[0]['role']!r} that is not the start "
            f"of `prompt`; give only the messages after the prompt, or the whole conversation with "
            "the same prompt, or omit `prompt`"
        )
    return parse_conversation([*messages, *answers])


def parse_pair(value: object) -> tuple[ChatJson, ChatJson]:
    """Return the two conversations (chosen, rejected) of a preference pair.

    `tools` may be given in the pair, with `prompt`, or with each whole conversation.
    """
    pair = _require_mapping(value, "pair", ("chosen", "rejected"))
    tools = parse_tools(pair.get("tools"))
    prompt = parse_prompt_chat(pair.get("prompt"))
    chosen, rejected = (
        join_chat(prompt, pair[name], name, tools) for name in ("chosen", "rejected")
    )
    return chosen, rejected


def parse_prompt_chat(value: object) -> Chat | None:
    """Like `parse_prompt`, of a prompt that may be None, or a mapping with `tools`."""
    if value is None:
        return None
    messages, tools = _split_tools(value, "prompt")
    return Chat(parse_prompt(messages), tools)


def join_chat(
    prompt: Chat | None, answer: object, what: str = "response", tools: Tools | None = None
) -> ChatJson:
    """Like `join`, for a prompt and an answer that may each have `tools`.

    Args:
        prompt: result of `parse_prompt_chat`, to validate a prompt only once.
        answer: see `join`.
        what: name of the answer in error messages.
        tools: validated tools that were given for both prompt and answer.
    """
    answer, answer_tools = _split_tools(answer, what)
    prompt_tools = None if prompt is None else prompt.tools
    given = [each for each in (tools, prompt_tools, answer_tools) if each is not None]
    if any(each != given[0] for each in given):
        raise InvalidConversationError(
            f"`tools` were given twice for `{what}`, and the two lists differ; give them once"
        )
    if prompt is None:
        messages = join(None, answer, what)
    else:
        messages = join_parsed(prompt.messages, answer, what)
    return Chat(messages, given[0] if given else None).to_json()


def parse_tools(value: object) -> Tools | None:
    """Validate the tools of a conversation.

    Args:
        value: a list of objects; or JSON text of such a list, as in tables; or a list of JSON
            texts of objects. None, blank text and JSON's null mean no tools.
    """
    if isinstance(value, str):
        value = None if not value.strip() else _read_json(value, "`tools`")
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise InvalidConversationError(f"`tools` is {describe_type(value)}; {_TOOLS_HINT}")
    return [_parse_tool(tool, index) for index, tool in enumerate(value)]


def add_tools(conversation: object, tools: object) -> object:
    """Add tools to a conversation that has none; return other values unchanged."""
    if tools is None:
        return conversation
    if isinstance(conversation, list | tuple):
        return {"messages": conversation, "tools": tools}
    if isinstance(conversation, Mapping) and conversation.get("tools") is None:
        return {**conversation, "tools": tools}
    return conversation


def get_messages(conversation: object) -> object:
    """Return the messages of an unvalidated conversation."""
    if isinstance(conversation, Mapping) and "messages" in conversation:
        return conversation["messages"]
    return conversation


def drop_nulls(value: Any) -> Any:
    """Remove keys whose value is null, at every depth. Items of lists are kept.

    In tables, every row has the keys of all rows, with null for keys that the row lacks, while chat
    templates test whether a key exists. Arrays and scalars of numpy become lists and plain values.
    A value that is nested too deeply, or contains itself, raises `RecursionError`.
    """
    if isinstance(value, str | bytes | memoryview):  # a memoryview has `tolist`
        return value
    if isinstance(value, Mapping):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [drop_nulls(item) for item in value]
    return drop_nulls(value.tolist()) if hasattr(value, "tolist") else value


def parse_arguments(messages: object) -> Any:
    """Parse the `arguments` of tool calls into objects, as vLLM does before it renders a template.

    OpenAI's clients send `arguments` as JSON text. Missing, null and empty arguments become `{}`.
    Values of another shape are returned unchanged.
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
                f"{where} is JSON text of {describe_type(parsed)}; send an object, or JSON text "
                "of an object"
            )
        arguments = parsed
    elif arguments is None or arguments == "":
        arguments = {}
    return {**call, "function": {**function, "arguments": arguments}}


def validate_unicode(text: str, where: str) -> str:
    """Return the text if it has no lone surrogate; else raise an error that begins with `where`."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidConversationError(
            f"{where} has a lone surrogate at character {error.start}, which is not valid Unicode; "
            "send well-formed text (half of an emoji was probably cut off)"
        ) from None
    return text


def _split_tools(value: object, what: str) -> tuple[object, Tools | None]:
    """Split unvalidated input into messages and validated tools."""
    if not isinstance(value, Mapping) or "messages" not in value:
        return value, None
    unknown = sorted(str(key) for key in value if key not in _CHAT_KEYS)
    if unknown:
        raise InvalidConversationError(
            f"the {what} has the unknown keys {format_keys(unknown)}; only `messages` and "
            "`tools` are rendered: remove the others"
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
            f"tool {index} is {describe_type(tool)}; `tools`: {_TOOLS_HINT}"
        )
    return dict(tool)


def _read_json(text: str, where: str) -> Any:
    try:
        return parse_strict(text)
    except (ValueError, RecursionError) as error:
        raise InvalidConversationError(
            f"{where} is text that cannot be read as JSON ({describe_error(error)}); send the "
            "value itself, or valid JSON text"
        ) from None


def _require_mapping(value: object, what: str, needed: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidConversationError(
            f"a {what} must be an object with {format_keys(needed)}, got {describe_type(value)}"
        )
    missing = [name for name in needed if value.get(name) is None]
    if missing:
        raise InvalidConversationError(
            f"the {what} has no {format_keys(missing)}; it has "
            f"{format_keys(sorted(map(str, value)))}"
        )
    return value


def _parse_messages(value: object, what: str) -> Messages:
    is_conversation = what == "conversation"  # a prompt or an answer may also be a string
    if isinstance(value, str | Mapping) or not isinstance(value, list | tuple):
        received = describe_type(value)
        if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
            received += " that looks like JSON; send the list itself (`json.loads` of the text)"
        raise InvalidConversationError(
            f"the {what} is {received}; it must be {'' if is_conversation else 'a string or '}"
            "a list of messages such as "
            '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
            + (', or {"messages": [...], "tools": [...]}' if is_conversation else "")
        )
    if not value:
        raise InvalidConversationError(
            f"the {what} is empty; give at least one message"
            + ("" if what == "prompt" else ", and the assistant's last")
        )
    return [_parse_message(message, index) for index, message in enumerate(value)]


def _parse_message(message: object, index: int) -> dict[str, Any]:
    where = f"message {index}"
    if not isinstance(message, Mapping):
        raise InvalidConversationError(
            f"{where} is {describe_type(message)}; it must be an object with `role` and `content`"
        )
    role = message.get("role")
    if role is None:
        raise InvalidConversationError(f"{where} has no `role`; allowed: {', '.join(ROLES)}")
    if role not in ROLES:
        raise InvalidConversationError(
            f"{where} has the role {quote(role, 40)}; allowed: {', '.join(ROLES)}"
        )
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    kept = {key: value for key, value in message.items() if value is not None}
    if isinstance(kept.get("tool_calls"), list | tuple) and not kept["tool_calls"]:
        del kept["tool_calls"]
    return {**kept, "role": role, "content": _parse_content(content, where)}


def get_text(content: Content) -> str:
    """Return the text of a validated message's content, without its images."""
    return content if isinstance(content, str) else "".join(p.get("text", "") for p in content)


def get_images(messages: Messages) -> list[tuple[Any, str]]:
    """Return the sources of all images of validated messages, each with its place in words."""
    return [
        (part["image"], f"part {index} of message {number}")
        for number, message in enumerate(messages)
        if not isinstance(message["content"], str)
        for index, part in enumerate(message["content"])
        if part["type"] == "image"
    ]


def map_images(messages: Messages, convert: Callable[[dict[str, Any]], dict[str, Any]]) -> Messages:
    """Return validated messages with each image part replaced by what `convert` returns for it."""
    return [
        message
        if isinstance(message["content"], str)
        else {
            **message,
            "content": [
                convert(part) if part["type"] == "image" else part for part in message["content"]
            ],
        }
        for message in messages
    ]


def refuse_images(messages: Messages, reader: str) -> None:
    """Refuse validated messages that have images; `reader` names what reads them: `a judge`."""
    for _, where in get_images(messages):
        raise InvalidConversationError(
            f"{where} is an image, and {reader} reads only text; remove the image, or use a "
            "vision-language reward model"
        )


def _parse_content(content: object, where: str) -> Content:
    """Return a string, or a list of parts if any of them is an image."""
    if isinstance(content, str):
        return validate_unicode(content, where)
    if content is None:
        raise InvalidConversationError(
            f'{where} has no `content`; give a string ("" for an empty answer) or content parts'
        )
    if not isinstance(content, list | tuple):
        raise InvalidConversationError(
            f"{where} has content that is {describe_type(content)}; it must be a string or a list "
            'of parts such as {"type": "text", "text": "..."}'
        )
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(content):
        parsed = _parse_part(part, f"part {index} of {where}")
        if parsed["type"] == "text" and parts and parts[-1]["type"] == "text":
            parts[-1] = {"type": "text", "text": parts[-1]["text"] + parsed["text"]}
        else:
            parts.append(parsed)
    has_images = any(part["type"] == "image" for part in parts)
    return parts if has_images else "".join(part["text"] for part in parts)


def _parse_part(part: object, where: str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": validate_unicode(part, where)}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind in _TEXT_TYPES:
        text = part.get("text")
        if isinstance(text, str):
            return {"type": "text", "text": validate_unicode(text, where)}
    if isinstance(part, Mapping) and isinstance(kind, str) and kind in _IMAGE_KEYS:
        return {"type": "image", "image": _parse_image(part, kind, where)}
    received = "not a text part" if kind in _TEXT_TYPES else f"of type {quote(kind, 40)}"
    raise InvalidConversationError(
        f'{where} is {received}; allowed: {{"type": "text", "text": "..."}}, and for models that '
        f"read images {_IMAGE_HINT}"
    )


def get_image_source(part: object) -> Any:
    """Return the source in an unvalidated content part; None if the part has no image."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str) or kind not in _IMAGE_KEYS:
        return None
    value = part.get(_IMAGE_KEYS[kind])
    if isinstance(value, Mapping):  # of OpenAI, and the feature `Image` of datasets
        value = value.get("url") if kind != "image" else value.get("bytes")
    return value


def _parse_image(part: Mapping[Any, Any], kind: str, where: str) -> Any:
    """Return the source of an image: text, the bytes of a file, or an image of Pillow."""
    value = get_image_source(part)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        scheme = value[:32].partition("://")[0] if "://" in value[:32] else ""
        if not scheme:
            return validate_unicode(value, where)
        raise InvalidConversationError(
            f"{where} is an image at an address ({scheme}://...), and no address is ever fetched; "
            f"send the file itself: {_IMAGE_HINT}"
        )
    if hasattr(value, "getbands"):  # an image of Pillow, which need not be installed
        return value
    found = "no image" if value is None else describe_type(value)
    raise InvalidConversationError(
        f"{where} is of type {quote(kind, 40)} and has {found} in `{_IMAGE_KEYS[kind]}`; allowed: "
        f"{_IMAGE_HINT}"
    )
