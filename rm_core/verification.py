"""Verify a scorer against plain transformers and against published rewards.

The reference is deliberately naive and shares no code with the engine: transformers' own
classifier with eager attention, one conversation at a time, tokenized as in the model cards.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rm_core.catalog.entries import seeds_dir
from rm_core.catalog.golden import get_golden_rewards
from rm_core.inputs.conversations import Messages, join
from rm_core.model.precision import use_ieee_products
from rm_core.scorer import RewardScorer
from rm_core.tolerance import FLOAT32_ROUNDING_FACTOR, bfloat16_step, compute_tolerance
from rm_core.types import Reward, ScoreError

# Published rewards come from bfloat16 runs. Other engines were observed 1 to 5 bfloat16 steps away.
GOLDEN_STEPS = 4
# For lower precision: minimum share of pairs in the same order, and maximum mean difference
# relative to the standard deviation of the rewards.
PAIR_AGREEMENT = 0.9
MEAN_DIFFERENCE = 0.1
_SKIPPED_ERRORS = ("template_error", "conversation_too_long")


class PlainTransformers:
    """transformers' own classifier with eager attention, on the scorer's device.

    Args:
        scorer: scorer whose checkpoint, template and device to use. The weights are loaded again.
        dtype: dtype of the whole model, including the head.
    """

    def __init__(self, scorer: RewardScorer, dtype: torch.dtype) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        loaded = scorer.loaded_model
        path = loaded.checkpoint.path
        self._device = loaded.device
        self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self._tokenizer.chat_template = scorer.encoder.chat_template
        self._date = scorer.encoder.template_date
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=dtype,
            num_labels=1,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
        ).eval()
        try:
            self._model.to(self._device)
        except torch.OutOfMemoryError:  # float32 takes twice the memory; the CPU is slow but works
            self._device = torch.device("cpu")
            self._model.to(self._device)

    @use_ieee_products()
    @torch.inference_mode()
    def compute_reward(self, messages: Messages) -> float:
        """Return the logit of one conversation."""
        bos = self._tokenizer.bos_token
        with _freeze_clock(self._tokenizer.chat_template, self._date):
            text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        assert isinstance(text, str)
        adds_bos = bos is not None and self._tokenizer("").input_ids[:1] == [
            self._tokenizer.bos_token_id
        ]
        if adds_bos:
            text = text if text.startswith(bos) else bos + text
        # As in `apply_chat_template(tokenize=True)`: no tokens that the text does not contain.
        inputs = self._tokenizer(text, return_tensors="pt", add_special_tokens=False)
        input_ids = inputs["input_ids"].to(self._device)
        return float(self._model(input_ids=input_ids).logits[0, 0])


@contextlib.contextmanager
def _freeze_clock(template: str, date: str | None) -> Iterator[None]:
    """Set the clock of transformers' own compiled template to midnight of `date`, if given.

    transformers converts functions among the template's variables to text, so the clock can only be
    replaced in the globals of the template's environment.
    """
    if date is None:
        yield
        return
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template_globals = _compile_jinja_template(template).environment.globals
    clock = template_globals["strftime_now"]
    template_globals["strftime_now"] = datetime.datetime.fromisoformat(date).strftime
    try:
        yield
    finally:
        template_globals["strftime_now"] = clock


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison with a reference.

    Attributes:
        name: name of the compared value.
        ours: value of the scorer; None if the conversation could not be scored.
        expected: value of the reference.
        tolerance: largest allowed absolute difference.
        passed: whether the difference is within the tolerance.
        note: source of the reference, or the error.
    """

    name: str
    ours: float | None
    expected: float
    tolerance: float
    passed: bool
    note: str

    @property
    def difference(self) -> float | None:
        """Signed difference `ours - expected`; None without `ours`."""
        return None if self.ours is None else self.ours - self.expected


def sample_conversations() -> list[tuple[str, Messages]]:
    """Return the built-in conversations with their names: both answers of every sample pair."""
    lines = (seeds_dir() / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    conversations = []
    for pair in map(json.loads, lines):
        conversations += [
            (f"{pair['id']}/{side}", join(pair.get("prompt"), pair[side], side))
            for side in ("chosen", "rejected")
        ]
    return conversations


def verify(scorer: RewardScorer, progress: Callable[[str], None] = lambda _: None) -> list[Check]:
    """Run every check that applies to a loaded model. All checks must pass.

    Conversations that the model's template refuses, or that exceed its limit, are skipped.

    Args:
        scorer: scorer to verify. On CUDA, its model is moved to the CPU and stays there.
        progress: called with the name of each stage.
    """
    progress("golden rewards")
    checks = list(_check_golden_rewards(scorer))
    progress("the built-in conversations")
    conversations = sample_conversations()
    results = scorer.score([messages for _, messages in conversations])
    compared = [
        (name, messages, result)
        for (name, messages), result in zip(conversations, results, strict=True)
        if isinstance(result, Reward) or result.code not in _SKIPPED_ERRORS
    ]
    if scorer.loaded_model.device.type == "cuda":  # the largest checkpoints do not fit twice
        scorer.loaded_model.model.to("cpu")  # type: ignore[arg-type]
        torch.cuda.empty_cache()
    compared_messages = [messages for _, messages, _ in compared]
    expected, tolerances, exact = _compute_references(scorer, compared_messages, progress)
    checks += [
        _build_check(name, result, reward, (tolerance, "plain transformers, eager"))
        for (name, _, result), reward, tolerance in zip(compared, expected, tolerances, strict=True)
    ]
    if exact:
        ours = {name: result.reward for name, _, result in compared if isinstance(result, Reward)}
        exact_rewards = dict(zip((name for name, *_ in compared), exact, strict=True))
        checks += compare_rankings(ours, exact_rewards)
    return checks


def compare_rankings(ours: Mapping[str, float], exact: Mapping[str, float]) -> list[Check]:
    """Check how well rewards of lower precision preserve the ranking of full precision.

    Args:
        ours: rewards by the names of `sample_conversations`.
        exact: rewards of plain transformers in float32, by the names of `sample_conversations`.

    Returns:
        Checks of the share of pairs in the same order and of the mean absolute difference; empty
        without pairs.
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
    scorer: RewardScorer, conversations: Sequence[Messages], progress: Callable[[str], None]
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
        plain = PlainTransformers(scorer, dtype)
        return [plain.compute_reward(messages) for messages in conversations]

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
    if entry is None:
        return
    golden = get_golden_rewards(entry)
    for score in golden.scores:
        messages = [{"role": m.role, "content": m.content} for m in score.messages]
        (result,) = scorer.score([messages])
        published = [score.reward, *(other.reward for other in score.also_observed)]
        reward = result.reward if isinstance(result, Reward) else math.inf
        nearest = min(published, key=lambda value: abs(value - reward))
        tolerance = GOLDEN_STEPS * bfloat16_step(nearest)
        yield _build_check(
            f"golden/{score.conversation}", result, nearest, (tolerance, score.engine)
        )
    for length in golden.token_lengths:
        messages = [{"role": m.role, "content": m.content} for m in length.messages]
        num_tokens = scorer.encoder.encode(messages).num_tokens
        expected = length.num_tokens
        yield Check(
            "golden/token length", num_tokens, expected, 0, num_tokens == expected, length.source
        )


def _build_check(
    name: str, result: Reward | ScoreError, expected: float, rule: tuple[float, str]
) -> Check:
    tolerance, note = rule
    if isinstance(result, ScoreError):
        return Check(name, None, expected, tolerance, False, f"{result.code}: {result.message}")
    passed = abs(result.reward - expected) <= tolerance
    return Check(name, result.reward, expected, tolerance, passed, note)
