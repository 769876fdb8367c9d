"""How close the engine is to plain transformers on the same weights, and to itself, bit for bit.

The reference is transformers' own eager decoder on one sequence at a time, its head in float32 as
the engine's, so that only decoders are compared. Kernels round otherwise than eager does, and
eager in bfloat16 is itself no truth: where memory allows, both are held against float32.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu.memory_meter import Meter
from gpu.models import cast

from rm_core.attention import install_packed_attention
from rm_core.model.forward import forward_batch
from rm_core.model.loading import LoadedModel
from rm_core.packing import TokenIds, pack
from rm_core.verification import bfloat16_step

# Beside the weights: scores of one long sequence in float32, several times over.
_WORKING_BYTES = 12 << 30
# A kernel may stray from float32 this many times as far as eager in bfloat16 does, on average.
_STRAYS = 2.0
# Without float32 at hand: from eager, as a share of the rewards' standard deviation.
_SHARE = 0.1


@dataclass(frozen=True)
class References:
    """Rewards of plain transformers.

    Attributes:
        eager: in bfloat16.
        exact: in float32; None where that did not fit into memory.
        without: what leaving a feature out would change, on average.
    """

    eager: list[float]
    exact: list[float] | None
    without: dict[str, float] = field(default_factory=dict)


@torch.inference_mode()
def plain_rewards(model: Any, sequences: Sequence[TokenIds]) -> list[float]:
    """Of transformers' eager attention, one by one; the model is left as it was."""
    head = model.score.weight.float()[0]
    model.set_attn_implementation("eager")
    try:
        rewards = []
        for sequence in sequences:
            input_ids = torch.tensor([sequence], device=model.device)
            hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state
            rewards.append(float(hidden[0, -1].float() @ head))
        return rewards
    finally:
        install_packed_attention(model)


def references(model: Any, sequences: Sequence[TokenIds], meter: Meter) -> References:
    """Everything that backends are compared with."""
    eager = plain_rewards(model, sequences)
    exact = None
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    if meter.free_bytes() > 2 * num_weights + _WORKING_BYTES:  # two bytes more each
        cast(model, torch.float32)
        try:
            exact = plain_rewards(model, sequences)
        finally:
            cast(model, torch.bfloat16)  # the same weights again, to the last bit
            meter.free_bytes()
    without = {}
    if model.config.model_type == "gemma2":
        for name, change in (("softcap", _softcap), ("window", _window)):
            before = change(model, None)
            without[name] = _mean(plain_rewards(model, sequences), eager)
            change(model, before)
    return References(eager, exact, without)


def _softcap(model: Any, value: float | None) -> float:
    modules = [m for m in model.modules() if hasattr(m, "attn_logit_softcapping")]
    before: float = modules[0].attn_logit_softcapping
    for module in modules:
        module.attn_logit_softcapping = value
    return before


def _window(model: Any, value: int | None) -> int:
    before: int = model.config.sliding_window
    model.config.sliding_window = value or 1 << 20
    return before


def score(
    loaded: LoadedModel, sequences: Sequence[TokenIds], row: int, fill: int = 1
) -> list[float]:
    """As `RewardScorer.score_ids` does, without its handling of errors."""
    packing = pack(sequences, row)
    results = [reward for tree in packing.batches for reward in forward_batch(loaded, tree, fill)]
    return packing.restore(results)


def compare(ours: list[float], reference: References) -> dict[str, Any]:
    """The figures of one backend, and whether it strays no further than it may."""
    eager, exact = reference.eager, reference.exact
    apart = [abs(a - b) for a, b in zip(ours, eager, strict=True)]
    figures: dict[str, Any] = {
        "max": max(apart),
        "mean": statistics.mean(apart),
        "pairs": _agreement(ours, exact or eager),
        "spread": statistics.pstdev(eager),
    }
    if exact is not None:
        figures["from_float32"] = _mean(ours, exact)
        figures["eager_from_float32"] = _mean(eager, exact)
        limit = allowed_stray(figures["eager_from_float32"], exact)
        figures["ok"] = figures["from_float32"] <= limit
    else:
        figures["ok"] = figures["mean"] <= _SHARE * figures["spread"]
    return figures | {f"without_{name}": mean for name, mean in reference.without.items()}


def allowed_stray(eager_stray: float, exact: Sequence[float]) -> float:
    """Return how far from float32 a kernel may be on average.

    Twice as far as eager, or one bfloat16 step of the rewards further than eager: over so few
    rewards eager may be closer by chance than rounding explains.

    Args:
        eager_stray: mean distance of plain eager in bfloat16 from float32.
        exact: rewards in float32.
    """
    step = statistics.mean(bfloat16_step(reward) for reward in exact)
    return max(_STRAYS * eager_stray, eager_stray + step)


def same_bits(
    loaded: LoadedModel, sequences: Sequence[TokenIds], row: int, fill: int
) -> dict[str, Any]:
    """How many sequences get one reward, to the last bit, alone and in batches cut in three ways.

    Args:
        loaded: a model in its batch-invariant mode.
        sequences: the tree; some of them are scored alone.
        row: most tokens of a batch, at most `fill`.
        fill: what every row is filled up to.
    """
    number = len(sequences)
    reversed_order = score(loaded, sequences[::-1], row, fill)[::-1]
    interleaved: list[float] = [0.0] * number
    interleaved[::2] = score(loaded, sequences[::2], row, fill)
    interleaved[1::2] = score(loaded, sequences[1::2], row, fill)
    ways: list[Callable[[int], float]] = [
        score(loaded, sequences, row, fill).__getitem__,
        reversed_order.__getitem__,
        score(loaded, sequences, row // 3, fill).__getitem__,
        interleaved.__getitem__,
    ]
    alone = {
        place: score(loaded, [sequences[place]], row, fill)[0] for place in range(0, number, 3)
    }
    same = [
        len({way(place) for way in ways} | ({alone[place]} if place in alone else set())) == 1
        for place in range(number)
    ]
    return {"same": sum(same), "of": number, "ok": all(same)}


def _mean(left: list[float], right: list[float]) -> float:
    return statistics.mean(abs(a - b) for a, b in zip(left, right, strict=True))


def _agreement(ours: list[float], reference: list[float]) -> str:
    """Of all pairs, how many are ordered alike."""
    pairs = list(itertools.combinations(range(len(ours)), 2))
    alike = sum((ours[a] > ours[b]) == (reference[a] > reference[b]) for a, b in pairs)
    return f"{alike}/{len(pairs)}"
