"""RLHFlow's Llama3.1-8B-PRM: a chat in which every step is a turn that `+` replies to.

As prm_evaluate.py in RLHFlow/RLHF-Reward-Modeling, math-rm: the first turn is the problem, a space
and the first step. A step is read at the token before its reply, as the odds of `+` against `-`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rm_core.errors import InvalidConversationError, ModelLoadError, TemplateError
from rm_core.inputs.conversations import Messages
from rm_core.inputs.steps.base import (
    FormatTools,
    StepFormatBase,
    TokenSequence,
    render_around_markers,
)
from rm_core.packing import TokenIds


class RlhflowFormat(StepFormatBase):
    """The chat template around steps of the user and replies `+`."""

    name = "rlhflow"
    needs_chat_template = True
    separator = "\n\n"
    marker = "+"
    warns_about_marker = False  # normal in mathematics

    def __init__(self, tools: FormatTools) -> None:
        assert tools.renderer is not None
        self._renderer = tools.renderer
        labels = [tools.tokenize(text) for text in ("+", "-")]
        if any(len(ids) != 1 for ids in labels):
            raise ModelLoadError(
                "the tokenizer has no single tokens for `+` and `-`, with which the step format "
                "`rlhflow` judges a step; choose another `step_format`"
            )
        self.label_ids = (labels[0][0], labels[1][0])
        self.marker_id = self.label_ids[0]
        self._check_template(tools)

    def _check_template(self, tools: FormatTools) -> None:
        """Refuse a template whose replies could merge with the texts around them."""
        added = tools.tokenizer.get_added_vocab()
        prompt = [{"role": "user", "content": "question"}]
        try:
            parts = self._render(prompt, ["first", "second"])
        except TemplateError as error:
            raise ModelLoadError(
                f"the chat template does not fit the step format `rlhflow`: {error.detail}"
            ) from error
        header = parts[0].rpartition("first")[2]
        is_set_off = any(token in header for token in added) and all(
            any(part.startswith(token) for token in added) for part in parts[1:]
        )
        ids = [tools.tokenize(part) for part in parts]
        joined = [*ids[0], self.marker_id, *ids[1], self.marker_id, *ids[2]]
        if not is_set_off or tools.tokenize(self.marker.join(parts)) != joined:
            raise ModelLoadError(
                "the chat template does not write special tokens around every reply, so the token "
                "before a reply `+` cannot be found with certainty; the step format `rlhflow` "
                "needs the template of the published checkpoint"
            )

    def split(self, response: str) -> list[str]:
        """Split at blank lines; an empty piece is a step."""
        return [piece.strip() for piece in response.split(self.separator)]

    def _render(self, prompt: Messages, steps: Sequence[str]) -> list[str]:
        def write_messages(reply: str) -> Messages:
            messages = [*prompt[:-1]]
            for index, step in enumerate(steps):
                content = f"{prompt[-1]['content']} {step}" if index == 0 else step
                messages.append({"role": "user", "content": content})
                messages.append({"role": "assistant", "content": reply})
            return messages

        return render_around_markers(self._renderer, write_messages, len(steps))

    def write(self, prompt: Messages, steps: Sequence[str], sequence: TokenSequence) -> None:
        """Write the rendered conversation."""
        if prompt[-1]["role"] != "user":
            raise InvalidConversationError(
                f"the last message before the solution has role {prompt[-1]['role']!r}; the step "
                "format `rlhflow` writes problem and first step as one message of the user: end "
                "the prompt with the user's message"
            )
        first, *others = self._render(prompt, steps)
        sequence.add_text(first)
        for part in others:
            sequence.add_readout()
            sequence.add_token(self.marker_id, self.marker)
            sequence.add_text(part)

    def count_prompt_tokens(self, input_ids: TokenIds) -> int:
        """Count all tokens: a further step is a further turn."""
        return len(input_ids)
