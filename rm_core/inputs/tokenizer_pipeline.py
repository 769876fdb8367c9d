"""What a tokenizer is made of, as `tokenizer.json` has it: for proofs that hold for known parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def list_steps(component: Any, name: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as its steps in order; none where there is no such part.

    Args:
        part: of a tokenizer of the library `tokenizers`.
        name: what a sequence of such parts calls them.
    """

    def flat(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if state["type"] == "Sequence":
            for step in state[name]:
                yield from flat(step)
        else:
            yield state

    return [] if component is None else list(flat(json.loads(component.__getstate__())))


def is_plain_bpe(model: Any) -> bool:
    """Whether a model is BPE that marks neither the starts nor the ends of words."""
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    return type(model).__name__ == "BPE" and not any(getattr(model, name) for name in affixes)
