"""Render conversations with the checkpoint's chat template to the text that is tokenized.

A prompt is rendered once for all its answers where the template allows it: `answer_text` proves for
each prompt what the template writes around an answer. In addition, texts written in this way are
compared with rendered ones when the template is loaded, and some of them while it is in use. After
any difference, every conversation is rendered.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

from rm_core.errors import InvalidConversationError, ModelLoadError, TemplateError
from rm_core.inputs.answer_text import AnswerText, get_surroundings, write_answer
from rm_core.inputs.chat_template import ChatTemplate, RenderingInterrupt
from rm_core.inputs.conversations import Chat, validate_unicode
from rm_core.inputs.prerendered import PROBE

logger = logging.getLogger(__name__)

# Probes for templates that refuse `PROBE`.
_OTHER_PROBES = (({"role": "system", "content": "system"}, *PROBE), (*PROBE, *PROBE))
# Conversations and answers for the comparison at load.
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
_CHATS = (*(Chat([*probe]) for probe in (PROBE, *_OTHER_PROBES)), Chat([*PROBE], [_TOOL]))
_ANSWERS = (
    *("", " ", "\n", "4", " \n x \t\n", "\u3000x\x1c"),
    *("{{ x }}", '"x" \\ <b>&', "e\u0301 😀", "x" * 999),
    *("<think>\nx\n</think>\n\ny", "x</think>y", "</think>", "<think>", "<tool_call>x</tool_call>"),
)
_MAX_LITERALS = 100
_MAX_CHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """What a template writes for a prompt with any answer."""

    snapshot: object  # the prompt's messages and tools, see `_take_snapshot`
    around: AnswerText | None  # what it writes; None if each conversation has to be rendered
    text: str  # what it writes before the answer; empty if that is unknown


class ChatRenderer:
    """Renders conversations without a BOS that the tokenizer adds.

    Args:
        check_interval: number of texts with a shared prompt of which one is rendered as well, and
            compared; 0 for none.

    Attributes:
        shares_prompts: whether a prompt is rendered once for all its answers. False before
            `check_shared_prompts`, and from any difference on.
    """

    def __init__(self, template: ChatTemplate, added_bos: str, check_interval: int = 0) -> None:
        self._template = template
        self._added_bos = added_bos
        self._check_interval = self._num_until_check = check_interval
        self.shares_prompts = False

    def render(self, chat: Chat, *, add_generation_prompt: bool = False) -> str:
        """Render a validated conversation.

        With `add_generation_prompt`, it ends with what the template writes before an answer.

        Raises:
            TemplateError: the template refuses the conversation.
            InvalidConversationError: the rendered text is not valid Unicode.
        """
        text = self._apply(chat, add_generation_prompt)
        return text.removeprefix(self._added_bos)

    def render_prompt(self, chat: Chat, known: RenderedPrompt | None) -> RenderedPrompt:
        """Render the prompt of a conversation: all but the last message's content.

        `known`, the prompt before, is returned if it is the same.
        """
        *messages, answer = chat.messages
        snapshot = _take_snapshot([messages, {**answer, "content": ""}, chat.tools])
        if known is not None and known.snapshot == snapshot:
            return known
        around = self._template.render_around(chat.messages, chat.tools)
        try:
            before, after = ("", "") if around is None else get_surroundings(around)
            validate_unicode(before + after, "the rendered conversation")
            return RenderedPrompt(snapshot, around, before.removeprefix(self._added_bos))
        except InvalidConversationError:  # from other keys; rendering each conversation tells
            return RenderedPrompt(snapshot, None, "")

    def render_answer(self, chat: Chat, prompt: RenderedPrompt) -> str:
        """Like `render`, with the prompt of the conversation from `render_prompt`."""
        text = self._write(chat, prompt) if self.shares_prompts else None
        if text is None:
            return self.render(chat)
        self._num_until_check -= 1  # is negative from the first text on if the interval is 0
        if self._num_until_check == 0:
            self._num_until_check = self._check_interval
            rendered = self.render(chat)
            if rendered != text:
                logger.error("a shared prompt changed a rendered text; prompts are not shared now")
                self.shares_prompts = False
            return rendered
        return text

    def _write(self, chat: Chat, prompt: RenderedPrompt) -> str | None:
        if prompt.around is None:
            return None
        text = write_answer(prompt.around, chat.messages[-1]["content"])
        return None if text is None else text.removeprefix(self._added_bos)

    def check_shared_prompts(self) -> None:
        """Find out whether a prompt with each of many answers is written as it is rendered."""
        deadline = time.thread_time() + _MAX_CHECK_S
        literals = self._template.list_literals()[:_MAX_LITERALS]
        answers = (*_ANSWERS, *(f"{a}{b}{a}" for b in literals for a in ("", "x")))
        num_written = 0
        for chat in _CHATS:
            prompt = self.render_prompt(chat, None)
            *messages, last = chat.messages
            for answer in answers:
                filled = replace(chat, messages=[*messages, {**last, "content": answer}])
                text = self._write(filled, prompt)
                num_written += text is not None
                if text is not None and text != self.try_render(filled):
                    reason = f"the chat template writes the answer {answer!r:.40} in another way"
                elif time.thread_time() > deadline:
                    reason = "the chat template is slow"
                else:
                    continue
                logger.warning("%s; each conversation is rendered whole", reason)
                return
        self.shares_prompts = num_written > 0
        if not self.shares_prompts:
            logger.info("the chat template reads the answer; each conversation is rendered whole")

    def try_render(self, chat: Chat) -> str | None:
        """Render a conversation; return None if that fails."""
        try:
            return self.render(chat)
        except InvalidConversationError:
            return None

    def render_probe(self) -> str:
        """Render `PROBE`, with any BOS; return an empty text if only other probes are accepted."""
        refusals = []
        for conversation in (PROBE, *_OTHER_PROBES):
            try:
                text = self._apply(Chat([*conversation]))
            except TemplateError as error:
                refusals.append(error)
                if isinstance(error.__cause__, RenderingInterrupt):
                    break  # every other probe may take as long
                continue
            return text if conversation is PROBE else ""
        raise ModelLoadError(
            "the chat template renders neither a conversation of a user and an assistant nor one "
            f"with a system prompt ({refusals[0].detail}); fix it, or give another template with "
            "--chat-template (setting `chat_template`)"
        )

    def _apply(self, chat: Chat, add_generation_prompt: bool = False) -> str:
        text = self._template.render(
            chat.messages, chat.tools, add_generation_prompt=add_generation_prompt
        )
        # Keys other than `content` are not validated before rendering.
        return validate_unicode(text, "the rendered conversation")


def _take_snapshot(value: Any) -> object:
    """Return a value that is equal for JSON data that a template renders in the same way.

    Numbers and booleans are equal only to those of their type, and objects only to those with the
    same order of keys.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return [*value], [v if type(v) is str else _take_snapshot(v) for v in value.values()]
    if isinstance(value, list):
        return [_take_snapshot(item) for item in value]
    if value is None or type(value) in (int, float, bool):
        return (type(value), repr(value))
    return object()  # equal to nothing
