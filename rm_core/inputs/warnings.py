"""What a caller should know of a conversation although it is scored: the `warnings` of a result.

Each warning begins with a stable word and a colon. None of them changes a reward.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

from rm_core.errors import InvalidConversationError
from rm_core.inputs.chat_formats import find_markers, find_transcript
from rm_core.inputs.conversations import Chat, Messages, parse_arguments

Render: TypeAlias = Callable[[Chat], str | None]
"""The text that the template makes of a conversation; None where the template refuses it."""

SYSTEM_PROMPT_WARNING = (
    "system_prompt: the authors of this checkpoint advise against system prompts; the "
    "conversation was scored with it all the same"
)
# Keys of a message that say something to the model, in the formats of OpenAI and of trainers.
_KEYS_WITH_CONTENT = (
    *("tool_calls", "function_call", "tools", "functions"),
    *("image", "images", "video", "videos", "audio", "audios"),
)
# Most names of a list in one warning.
_MAX_NAMES = 8
# Characters that are searched for the contents of a conversation: without a bound, those that are
# not found would cost all messages times all text. What comes after that is not warned of.
_MAX_SCANNED = 1 << 28
_SQUEEZE_CHARACTERS = 1 << 20  # characters at a time
# What nearly every special token looks like; others are looked for one by one.
_TOKENS = (re.compile(r"<[^<>\s]{1,60}>"), re.compile(r"\[[^\[\]\s]{1,40}\]"))


class WarningFinder:
    """Finds the warnings of conversations for one checkpoint.

    Args:
        own_markers: special tokens of the tokenizer, as text.
        warn_on_system_prompt: whether the checkpoint's authors advise against system prompts.
    """

    def __init__(self, own_markers: Collection[str], warn_on_system_prompt: bool) -> None:
        self._own = frozenset(own_markers)
        usual = {marker for marker in own_markers if any(t.fullmatch(marker) for t in _TOKENS)}
        self._odd = [marker for marker in own_markers if marker not in usual]
        self._warn_on_system_prompt = warn_on_system_prompt

    def find_warnings(self, chat: Chat, text: str, render: Render) -> tuple[str, ...]:
        """Warnings about a conversation.

        Args:
            chat: the whole conversation.
            text: what the template made of it.
            render: renders variants of it.
        """
        return (
            *self._check_system_prompt(chat.messages),
            *_check_lost_text(chat.messages, text),
            *_check_tools(chat, text, render),
            *_check_keys(chat, text, render),
            *_check_arguments(chat, text, render),
            *self._check_markers(chat.messages),
            *_check_turns_in_text(chat.messages),
        )

    def _check_system_prompt(self, messages: Messages) -> Iterator[str]:
        if self._warn_on_system_prompt and any(m["role"] == "system" for m in messages):
            yield SYSTEM_PROMPT_WARNING

    def _check_markers(self, messages: Messages) -> Iterator[str]:
        own: dict[int, list[str]] = {}
        foreign: dict[int, list[str]] = {}
        for index, message in enumerate(messages):
            content = message["content"]
            found = self._find_own_markers(content)
            if found:
                own[index] = found
            others = [m for m in find_markers(content) if m not in self._own]
            if others:
                foreign[index] = others
        if own:
            yield (
                f"template_markers_in_message: {_format_subject(own)} {_format_names(own)}, which the "
                "tokenizer of this checkpoint reads as special tokens, so that the text may end "
                "its turn and begin others; remove them, or send each turn as a message"
            )
        if foreign:
            yield (
                f"foreign_template_markers: {_format_subject(foreign)} {_format_names(foreign)}, which chat "
                "templates of other models write; if a template rendered that text, send its turns "
                "as messages"
            )

    def _find_own_markers(self, content: str) -> list[str]:
        found = [marker for marker in self._odd if marker in content]
        for like_a_token in _TOKENS:  # one of each kind may stand within another
            tokens = (match[0] for match in like_a_token.finditer(content))
            found += dict.fromkeys(token for token in tokens if token in self._own)
        return found


def _check_lost_text(messages: Messages, text: str) -> Iterator[str]:
    # Most contents are in the text as they came; only the others are worth a closer look.
    places = list(range(len(messages)))
    missing = _find_missing(text, places, [m["content"].strip() for m in messages])
    if missing:
        squeezed = [_squeeze(messages[place]["content"]) for place in missing]
        missing = _find_missing(_squeeze(text), missing, squeezed)
    if missing:
        yield (
            f"template_changed_content: the chat template left out or changed text of "
            f"message(s) {_format_indices(missing)}; /v1/render shows what was scored"
        )


def _find_missing(text: str, indices: list[int], contents: list[str]) -> list[int]:
    """The places of contents that are nowhere in a text."""
    missing = []
    at, left = 0, _MAX_SCANNED
    for place, content in zip(indices, contents, strict=True):
        # Templates write messages in their order, so that each is looked for once in most texts.
        found = text.find(content, at)
        left -= (found if found >= 0 else len(text)) - at
        if found < 0 and left > 0:
            found = text.find(content, 0, at + len(content) - 1)
            left -= at
            if found < 0:
                missing.append(place)
        elif found >= 0:
            at = found + len(content)
        if left <= 0:
            break
    return missing


def _check_tools(chat: Chat, text: str, render: Render) -> Iterator[str]:
    if chat.tools and render(replace(chat, tools=None)) == text:
        yield (
            "template_ignores_tools: the chat template of this checkpoint writes nothing of "
            "`tools`, so the reward is that of the conversation without them"
        )


def _check_keys(chat: Chat, text: str, render: Render) -> Iterator[str]:
    found = {
        name: places
        for name in _KEYS_WITH_CONTENT
        if (places := [i for i, message in enumerate(chat.messages) if message.get(name)])
    }
    for name, places in found.items():
        without = [{k: v for k, v in message.items() if k != name} for message in chat.messages]
        if render(replace(chat, messages=without)) == text:
            yield (
                f"template_ignores_keys: the chat template of this checkpoint writes nothing of "
                f"`{name}` in message(s) {_format_indices(places)}, so the reward is that of the "
                "conversation without it"
            )


def _check_arguments(chat: Chat, text: str, render: Render) -> Iterator[str]:
    places = [i for i, message in enumerate(chat.messages) if _has_arguments_as_text(message)]
    if not places:
        return
    try:
        parsed = parse_arguments(chat.messages)
    except InvalidConversationError:
        return
    if render(replace(chat, messages=parsed)) not in (text, None):
        yield (
            f"arguments_as_text: `arguments` of message(s) {_format_indices(places)} are JSON text, which "
            "the chat template writes in other words than the object; send the object, which is "
            "what templates expect"
        )


def _has_arguments_as_text(message: Any) -> bool:
    calls = message.get("tool_calls")
    functions = (c.get("function") for c in calls if isinstance(c, dict)) if _is_list(calls) else ()
    arguments = [f.get("arguments") for f in functions if isinstance(f, dict)]
    return any(isinstance(one, str) and one for one in arguments)


def _check_turns_in_text(messages: Messages) -> Iterator[str]:
    transcripts = {
        index: [words]
        for index, message in enumerate(messages)
        if (words := find_transcript(message["content"]))
    }
    if transcripts:
        yield (
            f"transcript_in_message: {_format_subject(transcripts)} turns of both sides as text "
            f"({_format_names(transcripts)}), and each message was scored as one turn; send each turn "
            "as a message"
        )
    as_json = [i for i, message in enumerate(messages) if _is_json_of_messages(message["content"])]
    if as_json:
        yield (
            f"messages_as_text: message(s) {_format_indices(as_json)} are JSON text of a list of messages, "
            "and were scored as the text that they are; send the list itself"
        )


def _is_json_of_messages(content: str) -> bool:
    begin = content[:200].lstrip()
    if not begin.startswith("[") or '"role"' not in content or '"content"' not in content:
        return False
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return bool(found) and all(
        isinstance(m, dict) and {"role", "content"} <= m.keys() for m in found
    )


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _format_subject(found: dict[int, list[str]]) -> str:
    return f"message(s) {_format_indices(list(found))} hold"


def _format_names(found: dict[int, list[str]]) -> str:
    names = list(dict.fromkeys(name for names in found.values() for name in names))
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _format_indices(indices: list[int]) -> str:
    more = f" and {len(indices) - _MAX_NAMES} more" if len(indices) > _MAX_NAMES else ""
    return ", ".join(map(str, indices[:_MAX_NAMES])) + more


def _squeeze(text: str) -> str:
    # Templates trim and reflow white space; only lost words are worth a warning. Split in parts,
    # since a list of all words takes many times the memory of the text.
    parts = (
        text[start : start + _SQUEEZE_CHARACTERS]
        for start in range(0, len(text), _SQUEEZE_CHARACTERS)
    )
    return "".join("".join(part.split()) for part in parts)
