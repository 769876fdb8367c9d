"""Qwen2.5-Math-PRM: the chat template, read at the token `<extra_0>` after each step.

As the model cards: a system prompt, the problem as the user's message, and the steps as the
assistant's, each with the token after it. For a solution as one text the cards recommend blank
lines as separators; more blank lines than one give no step.
"""

from __future__ import annotations

from collections.abc import Sequence

from rm_core.errors import ModelLoadError
from rm_core.inputs.conversations import Messages
from rm_core.inputs.steps.base import (
    FormatTools,
    StepFormatBase,
    TokenSequence,
    render_around_markers,
    split_nonblank,
)

SYSTEM_PROMPT = r"Please reason step by step, and put your final answer within \boxed{}."
"""Used for a prompt without a system message."""


class QwenMathFormat(StepFormatBase):
    """The chat template around steps that end with `<extra_0>`."""

    name = "qwen-math"
    needs_chat_template = True
    separator = "\n\n"
    marker = "<extra_0>"

    def __init__(self, tools: FormatTools) -> None:
        assert tools.renderer is not None
        self._renderer = tools.renderer
        marker_id = tools.tokenizer.get_added_vocab().get(self.marker)
        if marker_id is None or tools.tokenize(f"a{self.marker}b").count(marker_id) != 1:
            raise ModelLoadError(
                f"the tokenizer has no added token {self.marker}, at which a model of the step "
                "format `qwen-math` is read; take the tokenizer of the published checkpoint, or "
                "choose another `step_format`"
            )
        self.marker_id = marker_id

    def split(self, response: str) -> list[str]:
        """Split at blank lines."""
        return split_nonblank(response, self.separator)

    def write(self, prompt: Messages, steps: Sequence[str], sequence: TokenSequence) -> None:
        """Write the rendered conversation.

        An added token divides the text before it is tokenized, so the parts around it have the
        token ids that they have in the whole text.
        """
        if prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": SYSTEM_PROMPT}, *prompt]

        def write_messages(marker: str) -> Messages:
            content = "".join(step + marker for step in steps)
            return [*prompt, {"role": "assistant", "content": content}]

        first, *others = render_around_markers(self._renderer, write_messages, len(steps))
        sequence.add_text(first)
        for part in others:
            sequence.add_token(self.marker_id, self.marker)
            sequence.add_readout()
            sequence.add_text(part)
