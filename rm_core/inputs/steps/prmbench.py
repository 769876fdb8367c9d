"""Skywork-o1-Open-PRM as PRMBench runs it: with another marker, and with at most 512 tokens.

As `SkyworkPRM` in ssmisya/PRMBench at 03a539b, mr_eval/models/skywork_prm.py. The models were not
trained with this marker, so that only results of PRMBench are comparable with these values.
"""

from __future__ import annotations

from collections.abc import Sequence

from rm_core.inputs.conversations import Messages
from rm_core.inputs.steps.base import TokenSequence
from rm_core.inputs.steps.skywork import SkyworkFormat

MAX_TOKENS = 512


class PRMBenchFormat(SkyworkFormat):
    """BOS, problem, and steps, each followed by the marker; steps that end later have no value."""

    name = "skywork-prmbench"
    separator = "ки"
    marker = "ки"
    warns_about_marker = True

    def write(self, prompt: Messages, steps: Sequence[str], sequence: TokenSequence) -> None:
        """Write the problem as one text, and every step as another, up to the maximum length."""
        sequence.add_text(f"{self._bos}{self.get_problem(prompt)}\n")
        for step in steps:
            sequence.add_text(step)
            if len(sequence.input_ids) >= MAX_TOKENS:
                break
            sequence.add_token(self.marker_id, self.marker)
            sequence.add_readout()
