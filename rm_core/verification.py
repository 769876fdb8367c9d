"""Verify a scorer against plain transformers (`rm_core.reference`) and published rewards."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch

from rm_core.catalog.entries import seeds_dir
from rm_core.catalog.golden import get_golden_rewards
from rm_core.config import Kind
from rm_core.inputs.conversations import Messages, join
from rm_core.inputs.encoder import ChatEncoder
from rm_core.inputs.judge_items import JudgePair
from rm_core.inputs.step_items import StepItem
from rm_core.model.self_check import IMAGE_CONVERSATIONS
from rm_core.reference import build_reference
from rm_core.results import NUM_OUTPUTS, list_readouts
from rm_core.scorer import RewardScorer
from rm_core.tolerance import FLOAT32_ROUNDING_FACTOR, bfloat16_step, compute_tolerance
from rm_core.types import Encoded, Reward, ScoreError

# Published rewards come from bfloat16 runs. Other engines were observed 1 to 5 bfloat16 steps away.
GOLDEN_STEPS = 4
# For lower precision: minimum share of pairs in the same order, and maximum mean difference
# relative to the standard deviation of the rewards.
PAIR_AGREEMENT = 0.9
MEAN_DIFFERENCE = 0.1
_SKIPPED_ERRORS = ("template_error", "conversation_too_long")


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison with a reference."""

    name: str  # name of the compared value
    ours: float | None  # value of the scorer; None if the conversation could not be scored
    expected: float  # value of the reference
    tolerance: float  # largest allowed absolute difference
    passed: bool  # whether the difference is within the tolerance
    note: str  # source of the reference, or the error

    @property
    def difference(self) -> float | None:
        """Signed difference `ours - expected`; None without `ours`."""
        return None if self.ours is None else self.ours - self.expected


def sample_conversations() -> list[tuple[str, Messages]]:
    """Return the built-in conversations with their names: both answers of every sample pair."""
    return [
        (f"{pair['id']}/{side}", join(pair.get("prompt"), pair[side], side))
        for pair in _read_pairs()
        for side in ("chosen", "rejected")
    ]


def sample_items(kind: Kind) -> list[tuple[str, Any]]:
    """Return the built-in items for a kind of model with their names, in the order of the pairs."""
    if kind == "classifier":
        return [*sample_conversations()]
    pairs = [pair for pair in _read_pairs() if isinstance(pair["prompt"], str)]
    sides = (("chosen", "rejected"), ("rejected", "chosen"))
    if kind == "step":
        return [
            (f"{pair['id']}/{side}", StepItem(pair["prompt"], response=pair[side]))
            for pair in pairs
            for side, _ in sides
            if isinstance(pair[side], str)
        ]
    return [
        (f"{pair['id']}/{first} first", JudgePair(pair["prompt"], pair[first], pair[second]))
        for pair in pairs
        for first, second in sides
        if isinstance(pair[first], str) and isinstance(pair[second], str)
    ]


def _read_pairs() -> list[dict[str, Any]]:
    lines = (seeds_dir() / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [{"prompt": None} | json.loads(line) for line in lines]


class _Sample(NamedTuple):
    """An item that the encoder accepts, and the scorer's first output at each of its readouts."""

    name: str
    item: Any
    encoded: Encoded
    outputs: list[float | ScoreError]


def verify(scorer: RewardScorer, progress: Callable[[str], None] = lambda _: None) -> list[Check]:
    """Run every check that applies to a loaded model. All checks must pass.

    Conversations that the model's template refuses, or that exceed its limit, are skipped. On CUDA,
    the model is moved to the CPU and stays there.
    """
    progress("golden rewards")
    checks = list(_check_golden_rewards(scorer))
    progress("the built-in conversations")
    samples, failures = _score_samples(scorer)
    checks += [_build_check(name, error, math.nan, (0.0, "")) for name, error in failures]
    if scorer.loaded_model.device.type == "cuda":  # the largest checkpoints do not fit twice
        scorer.loaded_model.model.to("cpu")  # type: ignore[arg-type]
        torch.cuda.empty_cache()
    expected, tolerances, exact = _compute_references(scorer, samples, progress)
    names = [name for sample in samples for name in _name_readouts(sample)]
    outputs = [output for sample in samples for output in sample.outputs]
    checks += [
        _build_check(name, output, value, (tolerance, "plain transformers, eager"))
        for name, output, value, tolerance in zip(names, outputs, expected, tolerances, strict=True)
    ]
    if exact:
        ours = {
            name: output
            for name, output in zip(names, outputs, strict=True)
            if isinstance(output, float)
        }
        checks += compare_rankings(ours, dict(zip(names, exact, strict=True)))
    return checks


def _score_samples(scorer: RewardScorer) -> tuple[list[_Sample], list[tuple[str, ScoreError]]]:
    """Score the built-in items that the model can read; return errors of others by name."""
    kind = scorer.encoder.kind
    items = sample_items(kind)
    if isinstance(scorer.encoder, ChatEncoder) and scorer.encoder.reads_images:
        items += [(f"images/{i}", c) for i, c in enumerate(IMAGE_CONVERSATIONS)]
    encoded = scorer.encoder.encode_all(item for _, item in items)
    readable = [
        (name, item, result)
        for (name, item), result in zip(items, encoded, strict=True)
        if isinstance(result, Encoded)
    ]
    found = [result for _, _, result in readable]
    scored = scorer.score_ids(
        [e.input_ids for e in found],
        list_readouts(found, kind),
        [placed.image for e in found for placed in e.images],
    )
    outputs = iter(scored.outputs[:: NUM_OUTPUTS[kind]])
    samples = [
        _Sample(name, item, result, [*islice(outputs, len(result.readouts))])
        for name, item, result in readable
    ]
    failures = [
        (name, result)
        for (name, _), result in zip(items, encoded, strict=True)
        if isinstance(result, ScoreError) and result.code not in _SKIPPED_ERRORS
    ]
    return samples, failures


def _name_readouts(sample: _Sample) -> list[str]:
    if len(sample.encoded.readouts) == 1:
        return [sample.name]
    return [f"{sample.name}, step {index}" for index in range(len(sample.encoded.readouts))]


def compare_rankings(ours: Mapping[str, float], exact: Mapping[str, float]) -> list[Check]:
    """Check how well rewards of lower precision preserve the ranking of full precision.

    Both are by the names of `sample_conversations`. Checks the share of pairs in the same order and
    the mean absolute difference; returns nothing without pairs.
    """
    names = sorted({name.rpartition("/")[0] for name in ours})
    pairs = [(f"{name}/chosen", f"{name}/rejected") for name in names]
    pairs = [pair for pair in pairs if all(side in ours and side in exact for side in pair)]
    if not pairs:
        return []
    same = [
        (ours[chosen] > ours[rejected]) == (exact[chosen] > exact[rejected])
        for chosen, rejected in pairs
    ]
    share = sum(same) / len(same)
    difference = statistics.mean(abs(ours[name] - exact[name]) for name in ours)
    allowed = MEAN_DIFFERENCE * statistics.pstdev(exact.values())
    note = f"{sum(same)} of {len(same)} pairs, against float32"
    return [
        Check("agreement/pairs", share, 1.0, 1 - PAIR_AGREEMENT, share >= PAIR_AGREEMENT, note),
        Check(
            "agreement/mean absolute difference",
            difference,
            0.0,
            allowed,
            difference <= allowed,
            "against float32",
        ),
    ]


def _compute_references(
    scorer: RewardScorer, samples: Sequence[_Sample], progress: Callable[[str], None]
) -> tuple[list[float], list[float], list[float]]:
    """Compute the rewards of plain transformers and their tolerances.

    The tolerance (see `compute_tolerance`) includes the mean error of plain transformers, since a
    batch of another shape rounds differently in every layer. For float32, the self-check measured
    that error; for other dtypes, it is the difference from float32.
    Quantized weights differ from the checkpoint's, so only the ranking is checked, not each reward.

    Returns:
        Rewards in the model's dtype, tolerances, and rewards in float32 if the model is quantized
        or has another dtype (else empty).
    """

    def compute_rewards(dtype: torch.dtype) -> list[float]:
        progress(f"plain transformers in {str(dtype).removeprefix('torch.')}")
        reference = build_reference(scorer, dtype)
        return [
            output
            for sample in samples
            for output in reference.compute_outputs(sample.item, sample.encoded)
        ]

    loaded = scorer.loaded_model
    dtype = loaded.model.dtype
    expected = compute_rewards(dtype)
    exact = expected if dtype == torch.float32 else compute_rewards(torch.float32)
    if loaded.quantized:
        return expected, [math.inf] * len(expected), exact
    if dtype == torch.float32:
        mean_error = loaded.self_check.mean_error if loaded.self_check else 0.0
        tolerances = [
            compute_tolerance(reward, dtype, mean_error, FLOAT32_ROUNDING_FACTOR)
            for reward in expected
        ]
        return expected, tolerances, []
    differences = [abs(a - b) for a, b in zip(expected, exact, strict=True)]
    mean_error = statistics.mean(differences) if differences else 0.0
    tolerances = [compute_tolerance(reward, dtype, mean_error) for reward in expected]
    return expected, tolerances, exact


def _check_golden_rewards(scorer: RewardScorer) -> Iterable[Check]:
    entry = scorer.loaded_model.checkpoint.entry
    if entry is None or scorer.encoder.kind != "classifier":
        return
    golden = get_golden_rewards(entry)
    for score in golden.scores:
        messages = [{"role": m.role, "content": m.content} for m in score.messages]
        (result,) = scorer.score([messages])
        published = [score.reward, *(other.reward for other in score.also_observed)]
        reward = result.reward if isinstance(result, Reward) else math.inf
        nearest = min(published, key=lambda value: abs(value - reward))
        tolerance = GOLDEN_STEPS * bfloat16_step(nearest)
        ours = result.reward if isinstance(result, Reward) else result
        yield _build_check(f"golden/{score.conversation}", ours, nearest, (tolerance, score.engine))
    for length in golden.token_lengths:
        messages = [{"role": m.role, "content": m.content} for m in length.messages]
        num_tokens = scorer.encoder.encode(messages).num_tokens
        expected = length.num_tokens
        yield Check(
            "golden/token length", num_tokens, expected, 0, num_tokens == expected, length.source
        )


def _build_check(
    name: str, ours: float | ScoreError, expected: float, rule: tuple[float, str]
) -> Check:
    tolerance, note = rule
    if isinstance(ours, ScoreError):
        return Check(name, None, expected, tolerance, False, f"{ours.code}: {ours.message}")
    return Check(name, ours, expected, tolerance, abs(ours - expected) <= tolerance, note)
