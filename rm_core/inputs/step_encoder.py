"""Encode problems and solutions for step models: token ids, and the tokens read after each step."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rm_core.config import StepFormat, TokenizerMode
from rm_core.errors import ConversationTooLongError, InputError
from rm_core.inputs.base_encoder import LONG_TEXT, Encoder, SharedPrefix, format_too_long
from rm_core.inputs.chat_rendering import ChatRenderer
from rm_core.inputs.chat_template import ChatTemplate
from rm_core.inputs.conversations import Chat, Messages, parse_prompt, refuse_images
from rm_core.inputs.prerendered import PrerenderedReader
from rm_core.inputs.step_items import StepItem, parse_solution
from rm_core.inputs.steps import STEP_FORMATS
from rm_core.inputs.steps.base import FormatTools, TokenSequence
from rm_core.inputs.text_tokenizer import DEFAULT_CHECK_INTERVAL
from rm_core.inputs.warnings import WarningFinder
from rm_core.packing import TokenIds
from rm_core.types import Encoded, Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ADVICE = (
    "a step model reads the whole solution, so nothing is cut off, whatever `truncation` says: "
    "shorten the problem or the solution"
)
# Formats may drop blank pieces, so that more pieces than tokens are possible.
_MAX_PIECES = 65_536


class StepEncoder(Encoder):
    """Writes a problem and its steps as the authors of a step model do.

    Args:
        warn_on_system_prompt: whether the authors advise against system prompts.

    Raises:
        ModelLoadError: the checkpoint's tokenizer or chat template does not fit the format.
    """

    kind = "step"
    probe = StepItem("Hi", ("Hi!",))

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        step_format: StepFormat,
        *,
        max_length: int,
        warn_on_system_prompt: bool = False,
        template_date: datetime.date | None = None,
        tokenizer_mode: TokenizerMode = "auto",
        tokenizer_check_interval: int = DEFAULT_CHECK_INTERVAL,
    ) -> None:
        format_class = STEP_FORMATS[step_format]
        template = None
        if format_class.needs_chat_template:
            template = ChatTemplate(tokenizer, template_date or datetime.date.today())
        super().__init__(
            tokenizer,
            template,
            f"step_format: {step_format}\n",
            max_length=max_length,
            tokenizer_mode=tokenizer_mode,
            tokenizer_check_interval=tokenizer_check_interval,
        )
        renderer = ChatRenderer(template, self.added_bos) if template else None
        probe = renderer.render_probe() if renderer else ""
        bos = (self.added_bos,) if self.added_bos else ()
        self._format = format_class(
            FormatTools(
                tokenizer,
                lambda text: self._tokenize_range(text, 0, len(text)),
                self.find_ends,
                (*bos, *self.omitted_tokens),
                renderer,
            )
        )
        self.label_ids = self._format.label_ids
        self.prerendered_reader = PrerenderedReader(tokenizer, probe, bool(self.added_bos))
        self._warning_finder = WarningFinder(
            self.prerendered_reader.special_markers, warn_on_system_prompt
        )

    def encode(
        self,
        conversation: object,
        truncation: Truncation = "error",
        max_length: int | None = None,
        shared: SharedPrefix | None = None,
    ) -> Encoded:
        """Encode a `StepItem`, or messages whose last is the solution; one readout for each step.

        `truncation` and `shared` have no effect: nothing is cut off.
        """
        item = conversation if isinstance(conversation, StepItem) else parse_solution(conversation)
        prompt = parse_prompt(item.prompt)
        refuse_images(prompt, "a step model")
        limit = min(self.max_length, max_length or self.max_length)
        if item.steps is None:
            solution = item.response or ""
            steps = self._split(solution, limit)
        else:
            solution = "\n".join(item.steps)
            steps = [*item.steps]
        sequence = self._write(prompt, steps, limit)
        input_ids, text = sequence.input_ids, "".join(sequence.texts)
        if len(input_ids) > limit:
            raise ConversationTooLongError(format_too_long(str(len(input_ids)), limit, _ADVICE))
        assert len(sequence.readouts) <= len(steps)
        if not sequence.readouts:
            raise ConversationTooLongError(
                f"no step ends within the maximum length of the step format; {_ADVICE}"
            )

        def render(chat: Chat) -> str | None:
            try:
                return "".join(self._write(chat.messages, steps, limit).texts)
            except InputError:
                return None

        warnings = self._warning_finder.find_step_warnings(prompt, solution, text, render)
        return Encoded(
            text=text,
            input_ids=tuple(input_ids),
            readouts=tuple(sequence.readouts),
            truncated=len(sequence.readouts) < len(steps),
            warnings=(*warnings, *self._check_markers(sequence)),
            steps=tuple(steps),
        )

    def count_prompt_tokens(self, input_ids: TokenIds) -> int:
        """Count the tokens that continuations of the solution share, as in a beam search."""
        return self._format.count_prompt_tokens(input_ids)

    def _split(self, response: str, limit: int) -> list[str]:
        """Divide a response into steps; refuse it before a list of far too many is built."""
        num_pieces = response.count(self._format.separator) + 1
        most = max(limit, _MAX_PIECES)
        if num_pieces > most:
            raise ConversationTooLongError(
                f"the response is divided into {num_pieces:,} pieces, and at most {most:,} are "
                f"read; the limit is {limit} tokens: shorten it, or remove blank lines"
            )
        return self._format.split(response)

    def _write(self, prompt: Messages, steps: Sequence[str], limit: int) -> TokenSequence:
        """Write an item; refuse a long one before all of it is tokenized."""
        texts = (*(message["content"] for message in prompt), *steps)
        is_long = sum(map(len, texts)) >= LONG_TEXT

        def refuse_more_than_limit(num_tokens: int) -> None:
            if num_tokens > limit:
                raise ConversationTooLongError(
                    format_too_long(f"at least {num_tokens}", limit, _ADVICE)
                )

        def extend(input_ids: list[int], text: str) -> None:
            if text:
                self._extend(input_ids, text, 0, limit)
            if is_long:
                refuse_more_than_limit(len(input_ids))

        refuse_more_than_limit(self._format.count_min_tokens(steps))
        sequence = TokenSequence(extend, self._prepend_bos([]))
        self._format.write(prompt, steps, sequence)
        return sequence

    def _check_markers(self, sequence: TokenSequence) -> tuple[str, ...]:
        step_format = self._format
        num_others = sequence.input_ids.count(step_format.marker_id) - len(sequence.readouts)
        if not step_format.warns_about_marker or num_others <= 0:
            return ()
        return (
            f"step_marker_in_text: the texts contain {step_format.marker.strip()} "
            f"{num_others} time(s), with which this model's steps end; no value is read there, but "
            "the model may see the end of a step: remove it",
        )
