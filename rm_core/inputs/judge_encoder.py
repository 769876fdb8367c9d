"""Encode pairs of answers for generative judges: the prompt up to the label of the verdict.

The judge reads one message of the user, which its template writes from the prompt and the answers.
After the chat template's generation prompt come the tokens with which every verdict begins, so that
the next token is the label of one of the answers. One forward pass gives the odds of the labels, as
the judge's own greedy reply would.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_core.config import TokenizerMode
from rm_core.errors import ConversationTooLongError, InvalidConversationError, ModelLoadError
from rm_core.inputs.base_encoder import Encoder, SharedPrefix, format_too_long
from rm_core.inputs.chat_rendering import ChatRenderer
from rm_core.inputs.chat_template import ChatTemplate, PromptTemplate, TemplateSubject
from rm_core.inputs.conversations import (
    Chat,
    Messages,
    parse_prompt,
    refuse_images,
    validate_unicode,
)
from rm_core.inputs.judge_items import JudgePair
from rm_core.inputs.prerendered import PrerenderedReader
from rm_core.inputs.text_tokenizer import DEFAULT_CHECK_INTERVAL
from rm_core.inputs.warnings import WarningFinder
from rm_core.packing import TokenIds
from rm_core.text import format_names
from rm_core.types import Encoded, Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SKYWORK_CRITIC_TEMPLATE = Path(__file__).parent / "judge_templates" / "skywork_critic.jinja"
"""Prompt of the Skywork-Critic model cards. The spaces at the ends of its first lines belong to it,
since the models were trained with them."""

_SUBJECT = TemplateSubject("the judge template", "the judge template", "judge_template")
_ADVICE = (
    "a judge reads the prompt and both answers, so nothing is cut off, whatever `truncation` says: "
    "shorten them"
)
_PROMPT, _FIRST, _SECOND = "text of the prompt", "text of answer one", "text of answer two"
# Characters. Shorter lines, such as `A:`, occur in answers by chance.
_MIN_LINE = 8


class JudgeEncoder(Encoder):
    """Writes a prompt and two answers as a judge reads them.

    Args:
        judge_template: Jinja text that writes the user's message. Its variables are `response_a`
            and `response_b`; `prompt` (or `input`), the text of a prompt of one user message; and
            `messages`, the prompt as messages. None for `SKYWORK_CRITIC_TEMPLATE`.
        verdict_prefix: text at the start of the judge's reply, before the label.

    Raises:
        ModelLoadError: a template cannot be rendered, or a label is not one token.
    """

    kind = "judge"
    probe = JudgePair("Hi", "Hi!", "Hello!")

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        judge_template: str | None = None,
        verdict_prefix: str = "[[",
        verdict_labels: tuple[str, str] = ("A", "B"),
        template_date: datetime.date | None = None,
        tokenizer_mode: TokenizerMode = "auto",
        tokenizer_check_interval: int = DEFAULT_CHECK_INTERVAL,
    ) -> None:
        if judge_template is None:
            judge_template = SKYWORK_CRITIC_TEMPLATE.read_text(encoding="utf-8")
        self._template = PromptTemplate(judge_template, _SUBJECT)
        chat_template = ChatTemplate(tokenizer, template_date or datetime.date.today())
        super().__init__(
            tokenizer,
            chat_template,
            f"verdict: {verdict_prefix!r} {verdict_labels!r}\n{judge_template}\n",
            max_length=max_length,
            tokenizer_mode=tokenizer_mode,
            tokenizer_check_interval=tokenizer_check_interval,
        )
        self._renderer = ChatRenderer(chat_template, self.added_bos)
        self._prefix = verdict_prefix
        self._prefix_ids = self._tokenize_range(verdict_prefix, 0, len(verdict_prefix))
        self.label_ids = self._find_label_ids(verdict_labels)
        self._reads_messages = "messages" in self._template.names
        self._sections = self._render_probe()
        # Without the first and the last token, which may merge with the texts around them.
        before_first = self._sections[0].strip()
        inner_ids = self._tokenize_range(before_first, 0, len(before_first))[1:-1]
        self._ids_before_first = tuple(inner_ids)
        self.prerendered_reader = PrerenderedReader(
            tokenizer, self._renderer.render_probe(), bool(self.added_bos)
        )
        self._warning_finder = WarningFinder(self.prerendered_reader.special_markers, False)

    def encode(
        self,
        conversation: object,
        truncation: Truncation = "error",
        max_length: int | None = None,
        shared: SharedPrefix | None = None,
    ) -> Encoded:
        """Encode a `JudgePair`; see `encode_pair`. `truncation` has no effect."""
        if not isinstance(conversation, JudgePair):
            raise InvalidConversationError(
                "a judge compares two answers to one prompt and gives no reward to a single "
                "conversation; send the prompt with two answers"
            )
        pair = conversation
        return self.encode_pair(pair.prompt, pair.first, pair.second, max_length, shared)

    def encode_pair(
        self,
        prompt: str | Messages,
        first: str,
        second: str,
        max_length: int | None = None,
        shared: SharedPrefix | None = None,
    ) -> Encoded:
        """Encode two answers in one order. The last token, before the label, is read."""
        messages = parse_prompt(prompt)
        refuse_images(messages, "a judge")
        validate_unicode(first, "the first answer")
        validate_unicode(second, "the second answer")
        limit = min(self.max_length, max_length or self.max_length)
        text = self._render(self._write(messages, first, second))
        over = self._prove_too_long(text, limit)
        if over:
            raise ConversationTooLongError(format_too_long(f"at least {over}", limit, _ADVICE))
        rendered_ids, is_whole = self._tokenize(text, limit, shared)
        input_ids = (*rendered_ids, *self._prefix_ids)
        if not is_whole or len(input_ids) > limit:
            at_least = "" if is_whole else "at least "
            raise ConversationTooLongError(
                format_too_long(f"{at_least}{len(input_ids)}", limit, _ADVICE)
            )
        contents = {f"message {i} of the prompt": m["content"] for i, m in enumerate(messages)}
        contents |= {"the first answer": first, "the second answer": second}
        return Encoded(
            text=text + self._prefix,
            input_ids=input_ids,
            readouts=(len(input_ids) - 1,),
            warnings=(
                *self._warning_finder.find_marker_warnings(contents),
                *self._find_section_warnings(contents),
            ),
        )

    def count_prompt_tokens(self, input_ids: TokenIds) -> int:
        """Count the tokens before the first answer: the instruction and the prompt."""
        pattern = self._ids_before_first
        if not pattern:
            return 0
        start = -1
        try:
            while True:
                start = input_ids.index(pattern[0], start + 1)
                if input_ids[start : start + len(pattern)] == pattern:
                    return min(len(input_ids), start + len(pattern) + 1)
        except ValueError:
            return 0

    def _write(self, messages: Messages, first: str, second: str) -> str:
        """Write the user's message."""
        roles = [message["role"] for message in messages]
        is_single = roles == ["user"]
        if not is_single and not self._reads_messages:
            raise InvalidConversationError(
                f"the prompt has messages of the roles {format_names(roles)}, and this judge's "
                "template asks about one question of a user; send one message of the user, or "
                "serve the judge with a template that reads `messages` (setting `judge_template`)"
            )
        values: dict[str, Any] = {"messages": messages, "response_a": first, "response_b": second}
        if is_single:
            values["prompt"] = values["input"] = messages[0]["content"]
        return validate_unicode(self._template.render(values), "the rendered prompt")

    def _render(self, content: str) -> str:
        chat = Chat([{"role": "user", "content": content}])
        return self._renderer.render(chat, add_generation_prompt=True)

    def _render_probe(self) -> list[str]:
        """Return the template's texts before the first answer, between both, and after them."""
        try:
            text = self._write([{"role": "user", "content": _PROMPT}], _FIRST, _SECOND)
            self._render(text)
        except InvalidConversationError as error:
            raise ModelLoadError(
                f"no prompt with two answers can be rendered ({error.detail}); fix the template, "
                f"or {_SUBJECT.hint}"
            ) from error
        missing = [name for name in (_PROMPT, _FIRST, _SECOND) if name not in text]
        if missing or text.index(_FIRST) > text.index(_SECOND):
            raise ModelLoadError(
                "the judge template does not write the prompt and both answers, the first before "
                "the second; its variables are `prompt` or `messages`, `response_a` and "
                "`response_b`"
            )
        before, _, rest = text.partition(_FIRST)
        between, _, after = rest.partition(_SECOND)
        return [before.rpartition(_PROMPT)[2], between, after]

    def _find_label_ids(self, labels: Sequence[str]) -> tuple[int, ...]:
        """Return the id of each label's token after the prefix."""
        label_ids = []
        for label in labels:
            text = self._prefix + label
            ids = self._tokenize_range(text, 0, len(text))
            if ids[:-1] != self._prefix_ids:
                raise ModelLoadError(
                    f"the verdict label {label!r} is not one token after the prefix "
                    f"{self._prefix!r}: the tokenizer divides {text!r} into {len(ids)} tokens, and "
                    f"the prefix into {len(self._prefix_ids)}; choose other `verdict_labels` or "
                    "another `verdict_prefix`"
                )
            label_ids.append(ids[-1])
        return tuple(label_ids)

    def _find_section_warnings(self, contents: dict[str, str]) -> tuple[str, ...]:
        """Report texts that contain lines with which the template separates its sections."""
        lines = {line.strip() for section in self._sections for line in section.split("\n")}
        warnings = []
        for name, content in contents.items():
            found = [line for line in sorted(lines) if len(line) >= _MIN_LINE and line in content]
            if found:
                warnings.append(
                    f"judge_section_in_text: {name} contains {format_names(found)}, with which the "
                    "judge's template separates the answers, so the judge may take a part of it "
                    "for another text"
                )
        return tuple(warnings)
