"""Math-Shepherd: no template; ` ки` after each step, read there as the odds of `+` against `-`.

As the card of peiyi9979/math-shepherd-mistral-7b-prm: problem, a space, and one step a line, with
the marker at the end of each line. The whole text is tokenized at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from rm_core.errors import ModelLoadError
from rm_core.inputs.conversations import Messages
from rm_core.inputs.steps.base import FormatTools, StepFormatBase, TokenSequence, split_nonblank


class MathShepherdFormat(StepFormatBase):
    """Problem and steps as one text, with ` ки` after each step."""

    name = "math-shepherd"
    separator = "\n"
    marker = " ки"

    def __init__(self, tools: FormatTools) -> None:
        self._find_ends = tools.find_ends
        start, marked = tools.tokenize("a"), tools.tokenize(f"a{self.marker}")
        lines, labels = tools.tokenize(f"a{self.marker}\nb{self.marker}"), tools.tokenize("+ -")
        is_single = marked[:-1] == start and lines.count(marked[-1]) == 2
        if not is_single or len(labels) != 2:
            raise ModelLoadError(
                f"the tokenizer has no single tokens for {self.marker!r}, `+` and `-`, at which a "
                "model of the step format `math-shepherd` is read; take the tokenizer of the "
                "published checkpoint, or choose another `step_format`"
            )
        self.marker_id = marked[-1]
        self.label_ids = tuple(labels)

    def split(self, response: str) -> list[str]:
        """Split at line feeds, without blank lines."""
        return split_nonblank(response, self.separator)

    def write(self, prompt: Messages, steps: Sequence[str], sequence: TokenSequence) -> None:
        """Write one text, and find the markers in its token ids."""
        text = f"{self.get_problem(prompt)} "
        ends = []
        for step in steps:
            text += f"{step}{self.marker}"
            ends.append(len(text))
            text += "\n"
        text = text[:-1]
        num_before = len(sequence.input_ids)
        sequence.add_text(text)
        markers = [i for i, token in enumerate(sequence.input_ids) if token == self.marker_id]
        # Otherwise the texts have the marker too, or one of ours merged with its step.
        if not text.count(self.marker.strip()) == len(markers) == len(steps):
            markers = [num_before + index for index in self._find_ends(text, ends)]
        sequence.readouts += markers
