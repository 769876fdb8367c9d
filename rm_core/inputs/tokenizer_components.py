"""Components of a tokenizer as in `tokenizer.json`, for proofs about known components."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def list_steps(component: Any, name: str) -> list[dict[str, Any]]:
    """Return the steps of a component in order, of a sequence those under `name`; none for None."""

    def flatten(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if state["type"] == "Sequence":
            for step in state[name]:
                yield from flatten(step)
        else:
            yield state

    return [] if component is None else list(flatten(json.loads(component.__getstate__())))


def is_plain_bpe(model: Any) -> bool:
    """Return whether a model is BPE that marks neither the starts nor the ends of words."""
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    return type(model).__name__ == "BPE" and not any(getattr(model, name) for name in affixes)
