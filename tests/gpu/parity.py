"""Compares the engine with plain transformers on the same weights, and with itself bit for bit.

The reference is transformers' own eager decoder on one sequence at a time, with the head in float32
like the engine's, so that only decoders are compared. Kernels round differently from eager, and
eager in bfloat16 is not exact either: if memory allows, both are compared with float32.
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

# Memory in addition to the weights: several copies of one long sequence's scores in float32.
_WORKING_BYTES = 12 << 30
# A kernel's mean error, from float32, may be this many times eager's in bfloat16.
_ERROR_FACTOR = 2.0
# Without float32: allowed mean difference from eager, as a share of the standard deviation.
_SHARE = 0.1


@dataclass(frozen=True)
class References:
    """Rewards of plain transformers.

    Attributes:
        eager: rewards in bfloat16.
        exact: rewards in float32; None if float32 does not fit into memory.
        without: mean change of the rewards without a feature, by feature.
    """

    eager: list[float]
    exact: list[float] | None
    without: dict[str, float] = field(default_factory=dict)


@torch.inference_mode()
def plain_rewards(model: Any, sequences: Sequence[TokenIds]) -> list[float]:
    """Compute rewards with transformers' eager attention, one by one; the model is restored."""
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


def compute_references(model: Any, sequences: Sequence[TokenIds], meter: Meter) -> References:
    """Compute the rewards with which backends are compared."""
    eager = plain_rewards(model, sequences)
    exact = None
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    if meter.free_bytes() > 2 * num_weights + _WORKING_BYTES:  # two more bytes for each weight
        cast(model, torch.float32)
        try:
            exact = plain_rewards(model, sequences)
        finally:
            cast(model, torch.bfloat16)  # the same weights again, to the last bit
            meter.free_bytes()
    without = {}
    if model.config.model_type == "gemma2":
        for name, set_feature in (("softcap", _set_softcap), ("window", _set_window)):
            before = set_feature(model, None)
            without[name] = _mean(plain_rewards(model, sequences), eager)
            set_feature(model, before)
    return References(eager, exact, without)


def _set_softcap(model: Any, value: float | None) -> float:
    modules = [m for m in model.modules() if hasattr(m, "attn_logit_softcapping")]
    before: float = modules[0].attn_logit_softcapping
    for module in modules:
        module.attn_logit_softcapping = value
    return before


def _set_window(model: Any, value: int | None) -> int:
    before: int = model.config.sliding_window
    model.config.sliding_window = value or 1 << 20
    return before


def score(
    loaded: LoadedModel, sequences: Sequence[TokenIds], row: int, row_multiple: int = 1
) -> list[float]:
    """Score sequences as `RewardScorer.score_ids` does, without its handling of errors."""
    packing = pack(sequences, row)
    results = [
        reward for tree in packing.batches for reward in forward_batch(loaded, tree, row_multiple)
    ]
    return packing.restore(results)


def compare(rewards: list[float], reference: References) -> dict[str, Any]:
    """Compute the parity results of one backend, and whether its error is allowed."""
    eager, exact = reference.eager, reference.exact
    differences = [abs(a - b) for a, b in zip(rewards, eager, strict=True)]
    results: dict[str, Any] = {
        "max": max(differences),
        "mean": statistics.mean(differences),
        "pairs": _format_agreement(rewards, exact or eager),
        "spread": statistics.pstdev(eager),
    }
    if exact is not None:
        results["from_float32"] = _mean(rewards, exact)
        results["eager_from_float32"] = _mean(eager, exact)
        limit = compute_allowed_error(results["eager_from_float32"], exact)
        results["ok"] = results["from_float32"] <= limit
    else:
        results["ok"] = results["mean"] <= _SHARE * results["spread"]
    return results | {f"without_{name}": mean for name, mean in reference.without.items()}


def compute_allowed_error(eager_error: float, exact: Sequence[float]) -> float:
    """Return the allowed mean difference of a kernel from float32.

    Twice the error of eager, or one bfloat16 step of the rewards more than eager: over so few
    rewards eager may be closer by chance than rounding explains.

    Args:
        eager_error: mean difference of plain eager in bfloat16 from float32.
        exact: rewards in float32.
    """
    step = statistics.mean(bfloat16_step(reward) for reward in exact)
    return max(_ERROR_FACTOR * eager_error, eager_error + step)


def check_same_bits(
    loaded: LoadedModel, sequences: Sequence[TokenIds], row: int, row_multiple: int
) -> dict[str, Any]:
    """Count sequences whose reward is equal, to the last bit, alone and in different batches.

    Args:
        loaded: a model in its batch-invariant mode.
        sequences: the sequences of the tree; every third is also scored alone.
        row: maximum number of tokens of a batch, at most `row_multiple`.
        row_multiple: every row is padded to a multiple of this many tokens.
    """
    number = len(sequences)
    reversed_order = score(loaded, sequences[::-1], row, row_multiple)[::-1]
    interleaved: list[float] = [0.0] * number
    interleaved[::2] = score(loaded, sequences[::2], row, row_multiple)
    interleaved[1::2] = score(loaded, sequences[1::2], row, row_multiple)
    runs: list[Callable[[int], float]] = [
        score(loaded, sequences, row, row_multiple).__getitem__,
        reversed_order.__getitem__,
        score(loaded, sequences, row // 3, row_multiple).__getitem__,
        interleaved.__getitem__,
    ]
    alone = {
        index: score(loaded, [sequences[index]], row, row_multiple)[0]
        for index in range(0, number, 3)
    }
    same = [
        len({run(index) for run in runs} | ({alone[index]} if index in alone else set())) == 1
        for index in range(number)
    ]
    return {"same": sum(same), "of": number, "ok": all(same)}


def _mean(left: list[float], right: list[float]) -> float:
    return statistics.mean(abs(a - b) for a, b in zip(left, right, strict=True))


def _format_agreement(rewards: list[float], reference: list[float]) -> str:
    """Return the number of pairs in the same order, of all pairs."""
    pairs = list(itertools.combinations(range(len(rewards)), 2))
    agreeing = sum((rewards[a] > rewards[b]) == (reference[a] > reference[b]) for a, b in pairs)
    return f"{agreeing}/{len(pairs)}"
