"""Skywork-o1-Open-PRM: no template; each line is tokenized alone, and read at its line feed.

As `prepare_input` in SkyworkAI/skywork-o1-prm-inference, model_utils/io_utils.py: BOS, problem and
line feed are one text, so the line feed may merge with the end of the problem. A blank line is a
step, and so is what follows a line feed at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rm_core.config import StepFormat
from rm_core.errors import ModelLoadError
from rm_core.inputs.conversations import Messages
from rm_core.inputs.steps.base import FormatTools, StepFormatBase, TokenSequence
from rm_core.packing import TokenIds


class SkyworkFormat(StepFormatBase):
    """BOS, problem, and lines. A step of several lines is read at the end of its last line."""

    name: ClassVar[StepFormat] = "skywork"
    separator = "\n"
    marker = "\n"
    warns_about_marker = False  # lines are normal in a problem

    def __init__(self, tools: FormatTools) -> None:
        if tools.tokenizer.bos_token is None:
            raise ModelLoadError(
                "the tokenizer has no `bos_token`, with which the step format `skywork` begins "
                "every problem; take tokenizer_config.json and special_tokens_map.json of the "
                "published checkpoint, whose `bos_token` is <|im_start|>"
            )
        if tools.special_tokens:
            raise ModelLoadError(
                f"the tokenizer adds {' '.join(tools.special_tokens)} to every text, but the step "
                "format `skywork` tokenizes each line alone; take the tokenizer of the published "
                "checkpoint, or choose another `step_format`"
            )
        self._bos = str(tools.tokenizer.bos_token)
        self.marker_id = tools.tokenize(self.marker)[-1]

    def split(self, response: str) -> list[str]:
        """Split at every line feed."""
        return response.split(self.separator)

    def write(self, prompt: Messages, steps: Sequence[str], sequence: TokenSequence) -> None:
        """Write the problem as one text, and every line as another."""
        sequence.add_text(f"{self._bos}{self.get_problem(prompt)}\n")
        for step in steps:
            for line in step.split("\n"):
                sequence.add_text(line)
                sequence.add_token(self.marker_id, self.marker)
            sequence.add_readout()

    def count_min_tokens(self, steps: Sequence[str]) -> int:
        """Return a lower bound of the tokens: every line has a line feed."""
        return sum(step.count("\n") + 1 for step in steps)

    def count_prompt_tokens(self, input_ids: TokenIds) -> int:
        """Count all tokens: a further step follows the last line feed."""
        return len(input_ids)


PRMBENCH_MAX_TOKENS = 512


class PRMBenchFormat(SkyworkFormat):
    """BOS, problem, and steps, each followed by the marker; steps that end later have no value.

    As `SkyworkPRM` in ssmisya/PRMBench at 03a539b, mr_eval/models/skywork_prm.py: PRMBench runs the
    models with another marker, and with at most 512 tokens. They were not trained with this marker,
    so that only results of PRMBench are comparable with these values.
    """

    name = "skywork-prmbench"
    separator = "ки"
    marker = "ки"
    warns_about_marker = True

    def write(self, prompt: Messages, steps: Sequence[str], sequence: TokenSequence) -> None:
        """Write the problem as one text, and every step as another, up to the maximum length."""
        sequence.add_text(f"{self._bos}{self.get_problem(prompt)}\n")
        for step in steps:
            sequence.add_text(step)
            if len(sequence.input_ids) >= PRMBENCH_MAX_TOKENS:
                break
            sequence.add_token(self.marker_id, self.marker)
            sequence.add_readout()
