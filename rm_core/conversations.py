"""Checks and shapes of what callers send: conversations, preference pairs, prompts and answers.

Pure data in, pure data out; knows no tokenizer. Everything a caller can get wrong about the shape
of a conversation is told here, with the index of the message that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rm_core.errors import InvalidConversationError

ROLES = ("system", "user", "assistant", "tool")

Messages = list[dict[str, Any]]


def parse_conversation(value: object) -> Messages:
    """Check a conversation and flatten text parts into strings.

    Parts are joined without a separator, exactly as they were sent. Keys other than `role` and
    `content` stay as they are, for templates that read them (`tool_calls`, `name`, ...).

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
        return [{"role": "user", "content": checked_text(value, "prompt")}]
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
        return [*messages, {"role": "assistant", "content": checked_text(answer, what)}]
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


def parse_pair(value: object) -> tuple[Messages, Messages]:
    """The two conversations (chosen, rejected) of a preference record.

    Raises:
        InvalidConversationError: with what came, what is allowed and what to do.
    """
    record = _record(value, "pair", ("chosen", "rejected"))
    prompt = record.get("prompt")
    return (
        join(prompt, record["chosen"], "chosen"),
        join(prompt, record["rejected"], "rejected"),
    )


def checked_text(text: str, where: str) -> str:
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


def _record(value: object, what: str, needed: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidConversationError(
            f"a {what} must be an object with {_listed(needed)}, got {_kind(value)}"
        )
    missing = [name for name in needed if value.get(name) is None]
    if missing:
        raise InvalidConversationError(
            f"the {what} has no {_listed(missing)}; it has {_few(sorted(map(str, value)))}"
        )
    return value


def _parse_messages(value: object, what: str) -> Messages:
    whole = what == "conversation"  # a prompt or an answer may be a string as well
    if isinstance(value, str | Mapping) or not isinstance(value, list | tuple):
        raise InvalidConversationError(
            f"the {what} is {_kind(value)}; it must be {'' if whole else 'a string or '}"
            "a list of messages such as "
            '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
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
            f"{where} is {_kind(message)}; it must be an object with `role` and `content`"
        )
    role = message.get("role")
    if role is None:
        raise InvalidConversationError(f"{where} has no `role`; allowed: {', '.join(ROLES)}")
    if role not in ROLES:
        raise InvalidConversationError(
            f"{where} has the role {_short(role)}; allowed: {', '.join(ROLES)}"
        )
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    return {**message, "role": role, "content": _flatten(content, where)}


def _flatten(content: object, where: str) -> str:
    if isinstance(content, str):
        return checked_text(content, where)
    if content is None:
        raise InvalidConversationError(
            f'{where} has no `content`; give a string ("" for an empty answer) or text parts'
        )
    if not isinstance(content, list | tuple):
        raise InvalidConversationError(
            f"{where} has content that is {_kind(content)}; it must be a string or a list of "
            'text parts such as {"type": "text", "text": "..."}'
        )
    return "".join(_part_text(part, f"part {i} of {where}") for i, part in enumerate(content))


def _part_text(part: object, where: str) -> str:
    if isinstance(part, str):
        return checked_text(part, where)
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return checked_text(text, where)
    kind = part.get("type") if isinstance(part, Mapping) else None
    came = f"of type {_short(kind)}" if kind not in (None, "text") else "not a text part"
    raise InvalidConversationError(
        f'{where} is {came}; only text is scored: {{"type": "text", "text": "..."}}'
    )


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _few(names: list[str]) -> str:
    """The first of a caller's own names, which may be many and of any length."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return _listed([name if len(name) <= 40 else name[:37] + "..." for name in names[:8]]) + more


def _listed(names: object) -> str:
    assert isinstance(names, list | tuple)
    return ", ".join(f"`{name}`" for name in names) or "nothing"
