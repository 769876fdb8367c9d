"""Warnings: problems of a conversation that do not prevent scoring, as `warnings` of a result.

Each warning begins with a stable word and a colon. Warnings never change a reward.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from rm_core.errors import InvalidConversationError
from rm_core.inputs.chat_formats import find_markers, find_transcript
from rm_core.inputs.conversations import Chat, Messages, get_text, parse_arguments
from rm_core.text import format_names

Render: TypeAlias = Callable[[Chat], str | None]
"""Render a conversation with the template; return None if the template refuses it."""
KnownContents: TypeAlias = "dict[str, ContentFindings]"
"""Findings in contents, by content."""

SYSTEM_PROMPT_WARNING = (
    "system_prompt: the authors of this checkpoint advise against system prompts; the "
    "conversation was scored with its system prompt"
)
LOW_LABEL_MASS = 0.5
LOW_LABEL_MASS_WARNING = (
    f"low_label_mass: the judge replies with one of its labels with a probability below "
    f"{LOW_LABEL_MASS}, so its verdict may mean little; check that its template, `verdict_prefix` "
    "and `verdict_labels` fit the model"
)
# Keys of a message with input for the model, in the formats of OpenAI and of trainers.
_KEYS_WITH_CONTENT = (
    *("tool_calls", "function_call", "tools", "functions"),
    *("image", "images", "video", "videos", "audio", "audios"),
)
# Maximum number of characters to search for the contents of a conversation. Without a bound,
# contents that are not found would cost the number of messages times the length of the text.
# Contents beyond the bound give no warning.
_MAX_SCANNED = 1 << 28
_SQUEEZE_CHARACTERS = 1 << 20  # characters at a time
# Patterns that nearly every special token matches. Other tokens are searched one by one.
_TOKENS = (re.compile(r"<[^<>\s]{1,60}>"), re.compile(r"\[[^\[\]\s]{1,40}\]"))


@dataclass(frozen=True, slots=True)
class ContentFindings:
    """What a text contains that a content usually does not."""

    own_markers: list[str]  # markers of the checkpoint
    foreign_markers: list[str]  # markers of other templates
    transcript: str | None  # words that begin an assistant's turn, see `find_transcript`
    is_json: bool  # whether the text is JSON of a list of messages


class WarningFinder:
    """Finds the warnings of conversations for one checkpoint."""

    def __init__(self, own_markers: Collection[str], warn_on_system_prompt: bool) -> None:
        self._own = frozenset(own_markers)
        usual = {marker for marker in own_markers if any(t.fullmatch(marker) for t in _TOKENS)}
        self._unusual = [marker for marker in own_markers if marker not in usual]
        self._warn_on_system_prompt = warn_on_system_prompt

    def find_warnings(
        self, chat: Chat, text: str, render: Render, known: KnownContents | None = None
    ) -> tuple[str, ...]:
        """Return the warnings for a whole conversation, before truncation, and its rendered text.

        `render` renders variants of the conversation. `known` has the findings in the contents of
        the previous conversation, and gets those of this one.
        """
        findings = self._search_contents(_index_contents(chat.messages), known)
        return (
            *self._check_system_prompt(chat.messages),
            *_check_lost_text(chat.messages, text),
            *_check_tools(chat, text, render),
            *_check_keys(chat, text, render),
            *_check_arguments(chat, text, render),
            *_describe_markers(findings),
            *_describe_turns(findings),
        )

    def find_step_warnings(
        self, prompt: Messages, solution: str, text: str, render: Render
    ) -> tuple[str, ...]:
        """Return the warnings for a problem and its solution, with the text that is tokenized.

        `render` writes variants of the prompt with the solution.
        """
        messages = [*prompt, {"role": "assistant", "content": solution}]
        findings = self._search_contents(_index_contents(messages))
        return (
            *self._check_system_prompt(messages),
            *_check_lost_text(prompt, text),
            *_check_keys(Chat(prompt), text, render),
            *_describe_markers(findings),
            *_describe_turns(findings),
        )

    def _check_system_prompt(self, messages: Messages) -> Iterator[str]:
        if self._warn_on_system_prompt and any(m["role"] == "system" for m in messages):
            yield SYSTEM_PROMPT_WARNING

    def find_marker_warnings(self, contents: Mapping[Any, str]) -> Iterator[str]:
        """Yield warnings about markers of chat templates in texts, by index or name of the text."""
        return _describe_markers(self._search_contents(contents))

    def _search_contents(
        self, contents: Mapping[Any, str], known: KnownContents | None = None
    ) -> dict[Any, ContentFindings]:
        """Search each text that is not known; known texts become those of this call."""
        known = {} if known is None else known
        found = {text: known.get(text) or self._search(text) for text in contents.values()}
        known.clear()
        known.update(found)
        return {name: found[text] for name, text in contents.items()}

    def _search(self, content: str) -> ContentFindings:
        return ContentFindings(
            self._find_own_markers(content),
            [marker for marker in find_markers(content) if marker not in self._own],
            find_transcript(content),
            _is_json_of_messages(content),
        )

    def _find_own_markers(self, content: str) -> list[str]:
        markers = [marker for marker in self._unusual if marker in content]
        for pattern in _TOKENS:  # a match of one pattern may contain a match of the other
            tokens = (match[0] for match in pattern.finditer(content))
            markers += dict.fromkeys(token for token in tokens if token in self._own)
        return markers


def _describe_markers(findings: Mapping[Any, ContentFindings]) -> Iterator[str]:
    own = {name: found.own_markers for name, found in findings.items() if found.own_markers}
    if own:
        yield (
            f"template_markers_in_message: {_format_subject(own)} {_format_names(own)}, which "
            "the tokenizer of this checkpoint reads as special tokens, so the text may end its "
            "turn and begin others; remove them, or send each turn as a message"
        )
    foreign = {
        name: found.foreign_markers for name, found in findings.items() if found.foreign_markers
    }
    if foreign:
        yield (
            f"foreign_template_markers: {_format_subject(foreign)} {_format_names(foreign)}, "
            "which chat templates of other models write; if a template rendered the text, send "
            "its turns as messages"
        )


def _check_lost_text(messages: Messages, text: str) -> Iterator[str]:
    # Most contents occur in the text unchanged; only the others need the slower comparison.
    indices = list(range(len(messages)))
    missing = _find_missing(text, indices, [get_text(m["content"]).strip() for m in messages])
    if missing:
        squeezed = [_squeeze(get_text(messages[index]["content"])) for index in missing]
        missing = _find_missing(_squeeze(text), missing, squeezed)
    if missing:
        yield (
            f"template_changed_content: the chat template omitted or changed text of message(s) "
            f"{format_names(missing)}; /v1/render shows what was scored"
        )


def _find_missing(text: str, indices: list[int], contents: list[str]) -> list[int]:
    """Return the indices of contents that do not occur in a text."""
    missing = []
    start, budget = 0, _MAX_SCANNED
    for index, content in zip(indices, contents, strict=True):
        # Templates write messages in order, so that most contents are found by one search.
        position = text.find(content, start)
        budget -= (position if position >= 0 else len(text)) - start
        if position < 0 and budget > 0:
            position = text.find(content, 0, start + len(content) - 1)
            budget -= start
            if position < 0:
                missing.append(index)
        elif position >= 0:
            start = position + len(content)
        if budget <= 0:
            break
    return missing


def _check_tools(chat: Chat, text: str, render: Render) -> Iterator[str]:
    if chat.tools and render(replace(chat, tools=None)) == text:
        yield (
            "template_ignores_tools: the chat template of this checkpoint ignores `tools`, so the "
            "reward is that of the conversation without them"
        )


def _check_keys(chat: Chat, text: str, render: Render) -> Iterator[str]:
    keys = {key for message in chat.messages for key in message}
    indices_by_key = {
        key: indices
        for key in _KEYS_WITH_CONTENT
        if key in keys and (indices := [i for i, m in enumerate(chat.messages) if m.get(key)])
    }
    for key, indices in indices_by_key.items():
        without = [{k: v for k, v in message.items() if k != key} for message in chat.messages]
        if render(replace(chat, messages=without)) == text:
            yield (
                f"template_ignores_keys: the chat template of this checkpoint ignores `{key}` of "
                f"message(s) {format_names(indices)}, so the reward is that of the "
                "conversation without it"
            )


def _check_arguments(chat: Chat, text: str, render: Render) -> Iterator[str]:
    indices = [i for i, message in enumerate(chat.messages) if _has_arguments_as_text(message)]
    if not indices:
        return
    try:
        parsed = parse_arguments(chat.messages)
    except InvalidConversationError:
        return
    if render(replace(chat, messages=parsed)) not in (text, None):
        yield (
            f"arguments_as_text: `arguments` of message(s) {format_names(indices)} are "
            "JSON text, which the chat template renders differently from an object; send the "
            "object, which templates expect"
        )


def _has_arguments_as_text(message: Any) -> bool:
    calls = message.get("tool_calls")
    calls = calls if isinstance(calls, list | tuple) else ()
    functions = (call.get("function") for call in calls if isinstance(call, dict))
    arguments = [f.get("arguments") for f in functions if isinstance(f, dict)]
    return any(isinstance(value, str) and value for value in arguments)


def _describe_turns(findings: Mapping[Any, ContentFindings]) -> Iterator[str]:
    transcripts = {
        index: [found.transcript] for index, found in findings.items() if found.transcript
    }
    if transcripts:
        yield (
            f"transcript_in_message: {_format_subject(transcripts)} turns of both sides as text "
            f"({_format_names(transcripts)}), and each message was scored as one turn; send each "
            "turn as a message"
        )
    as_json = [index for index, found in findings.items() if found.is_json]
    if as_json:
        yield (
            f"messages_as_text: message(s) {format_names(as_json)} are JSON text of a "
            "list of messages, and were scored as plain text; send the list itself"
        )


def _is_json_of_messages(content: str) -> bool:
    start = content[:200].lstrip()
    if not start.startswith("[") or '"role"' not in content or '"content"' not in content:
        return False
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return bool(parsed) and all(
        isinstance(m, dict) and {"role", "content"} <= m.keys() for m in parsed
    )


def _index_contents(messages: Messages) -> dict[int, str]:
    return {index: get_text(message["content"]) for index, message in enumerate(messages)}


def _format_subject(names_by_index: dict[Any, list[str]]) -> str:
    if all(isinstance(index, int) for index in names_by_index):
        return f"message(s) {format_names(names_by_index)} contain"
    return f"the text of {format_names(names_by_index)} contains"


def _format_names(names_by_index: dict[Any, list[str]]) -> str:
    names = list(dict.fromkeys(name for names in names_by_index.values() for name in names))
    return format_names(names)


def _squeeze(text: str) -> str:
    # Templates strip and reflow white space, and only lost words need a warning. The text is split
    # in chunks, since a list of all words takes many times the memory of the text.
    chunks = (
        text[start : start + _SQUEEZE_CHARACTERS]
        for start in range(0, len(text), _SQUEEZE_CHARACTERS)
    )
    return "".join("".join(chunk.split()) for chunk in chunks)
