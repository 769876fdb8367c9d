"""The checks: each compares the engine with plain transformers on one checkpoint.

The reference is `reference.Reference`: transformers' classifier, eager attention, one conversation
at a time, tokenized as model cards do it; it shares no code with the engine.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from reference import Reference

from rm_core import (
    BatchConfig,
    ModelConfig,
    ModelLoadError,
    Reward,
    RewardScorer,
    ScoreError,
    load_encoder,
)
from rm_core.config import DType, Quantization
from rm_core.model.forward import ForwardPass, forward_batch
from rm_core.model.self_check import build_self_check, encode_samples
from rm_core.model.weights import read_weights
from rm_core.tolerance import FLOAT32_TOLERANCE, compute_tolerance
from rm_core.verification import compare_rankings

Messages = list[dict[str, Any]]
Ids = tuple[int, ...]

# Every row is filled up to so many tokens, and a few conversations fill one.
_DETERMINISTIC_BUDGET = 512
_NUM_DETERMINISTIC = 5
# Of the tokens of a conversation, how many are left by the checks of truncation.
_SHARES = (0.4, 0.7)
_E4M3_MAX = 448.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        figure: what was measured, with its unit.
        allowed: the bound.
        passed: whether the figure keeps it; None for what is told and not judged.
        about: over what it was measured, or why it was not.
    """

    check: str
    figure: str
    allowed: str
    passed: bool | None
    about: str


@dataclass(frozen=True)
class Subject:
    """A checkpoint and what to score with it.

    Attributes:
        folder: of the checkpoint; Llama architecture, with a chat template.
        groups: answers to one prompt each, by the group's name.
        singles: other conversations by their names; at least one of several turns.
        forward: the engine's forward pass.
    """

    folder: Path
    groups: dict[str, list[Messages]]
    singles: dict[str, Messages]
    forward: ForwardPass = forward_batch

    @cached_property
    def conversations(self) -> list[Messages]:
        """All of them, those of a group one after another."""
        grouped = [messages for group in self.groups.values() for messages in group]
        return grouped + list(self.singles.values())

    @cached_property
    def reference(self) -> Reference:
        """Plain transformers in float32."""
        return Reference(self.folder)

    @cached_property
    def expected(self) -> list[float]:
        """Plain transformers' rewards in float32, one for each conversation."""
        return [self.reference.reward(messages) for messages in self.conversations]

    def load(
        self,
        dtype: DType = "float32",
        *,
        deterministic: bool = False,
        quantization: Quantization = "none",
        max_batch_tokens: int | None = None,
    ) -> RewardScorer:
        """The engine with this checkpoint, on the CPU."""
        config = ModelConfig(
            str(self.folder),
            dtype=dtype,
            device="cpu",
            deterministic=deterministic,
            quantization=quantization,
        )
        return RewardScorer.load(config, BatchConfig(max_batch_tokens), self.forward)

    @cached_property
    def scorer(self) -> RewardScorer:
        """The engine in float32."""
        return self.load()


def check_tokens(subject: Subject) -> Iterator[Finding]:
    """Token ids, with the one BOS that the template or the tokenizer writes."""
    wrong = 0
    for messages in subject.conversations:
        encoded = subject.scorer.encoder.encode(messages)
        wrong += list(encoded.input_ids) != list(subject.reference.input_ids(messages))
    number = len(subject.conversations)
    yield Finding("token ids", f"{wrong} differ", "0", wrong == 0, f"{number} conversations")


def check_parity(subject: Subject) -> Iterator[Finding]:
    """Rewards in float32 and in bfloat16 against plain transformers in the same dtype."""
    exact = subject.expected
    ours = rewards(subject.scorer.score(subject.conversations))
    num_tokens = sum(
        subject.scorer.encoder.encode(messages).num_tokens for messages in subject.conversations
    )
    about = (
        f"{len(exact)} conversations, {num_tokens} tokens; rewards {min(exact):.2f} to "
        f"{max(exact):.2f}, standard deviation {statistics.pstdev(exact):.2f}"
    )
    allowed = [compute_tolerance(reward, torch.float32, 0.0) for reward in exact]
    yield _parity_finding("float32", (ours, exact, allowed), about)

    plain = Reference(subject.folder, torch.bfloat16)
    expected = [plain.reward(messages) for messages in subject.conversations]
    del plain
    scorer = subject.load("bfloat16")
    ours = rewards(scorer.score(subject.conversations))
    mean_error = statistics.mean(differences(expected, exact))
    allowed = [compute_tolerance(reward, torch.bfloat16, mean_error) for reward in expected]
    about = (
        f"attention {scorer.fingerprint.attention}; plain transformers in bfloat16 is "
        f"{mean_error:.2g} from its own float32 in the mean, the engine "
        f"{statistics.mean(differences(ours, exact)):.2g}"
    )
    yield _parity_finding("bfloat16", (ours, expected, allowed), about)


def _parity_finding(
    name: str, figures: tuple[Sequence[float], Sequence[float], Sequence[float]], about: str
) -> Finding:
    ours, expected, allowed = figures
    found = differences(ours, expected)
    worst = max(range(len(found)), key=lambda index: found[index] / allowed[index])
    passed = all(a <= b for a, b in zip(found, allowed, strict=True))
    return Finding(f"parity, {name}", f"{found[worst]:.2g}", f"{allowed[worst]:.2g}", passed, about)


def check_determinism(subject: Subject) -> Iterator[Finding]:
    """In deterministic mode a reward has the same bits alone, in any batch and in any order."""
    scorer = subject.load(deterministic=True, max_batch_tokens=_DETERMINISTIC_BUDGET)
    all_ids = [tuple(scorer.encoder.encode(m).input_ids) for m in subject.conversations]
    shortest = sorted(set(all_ids), key=len)[:_NUM_DETERMINISTIC]
    alone = {ids: score_ids(scorer, [ids])[0] for ids in shortest}
    changed = 0
    orders = [list(shortest), list(reversed(shortest))]
    orders += [random.Random(seed).sample(shortest, len(shortest)) for seed in range(2)]
    orders.append(orders[-1][: len(shortest) // 2])
    for order in orders:
        together = score_ids(scorer, order)
        changed += sum(alone[ids] != reward for ids, reward in zip(order, together, strict=True))
    yield Finding(
        "deterministic mode",
        f"{changed} differ",
        "0",
        changed == 0,
        f"{len(shortest)} conversations alone and in {len(orders)} other batches, bit for bit",
    )


def check_sharing(subject: Subject) -> Iterator[Finding]:
    """Answers to one prompt: the prompt is computed once, and rewards are those of each alone."""
    expected = iter(subject.expected)
    computed = total = 0
    largest = 0.0
    all_shared = True
    for group in subject.groups.values():
        sequences = [tuple(subject.scorer.encoder.encode(m).input_ids) for m in group]
        scored = subject.scorer.score_ids(sequences)
        plain = [next(expected) for _ in group]
        ours = [reward for reward in scored.outputs if not isinstance(reward, ScoreError)]
        largest = max(largest, *differences(ours, plain))
        all_shared &= scored.num_computed_tokens <= num_distinct(sequences)
        computed += scored.num_computed_tokens
        total += sum(map(len, sequences))
    yield Finding(
        "sharing, tokens computed",
        f"{computed} of {total}",
        "each shared token once",
        all_shared and computed < total,
        f"{len(subject.groups)} groups of answers to one prompt",
    )
    yield Finding(
        "sharing, rewards",
        f"{largest:.2g}",
        f"{FLOAT32_TOLERANCE:.2g}",
        largest <= FLOAT32_TOLERANCE,
        "each group in one batch, against plain transformers on each alone",
    )


def num_distinct(sequences: Sequence[Ids]) -> int:
    """Distinct prefixes of token sequences: what has to be computed if nothing is twice."""
    return len({ids[: end + 1] for ids in sequences for end in range(len(ids))})


def check_truncation(subject: Subject) -> Iterator[Finding]:
    """Cut conversations: what is left is well formed, and its reward is plain transformers'."""
    for side in ("left", "right"):
        broken: list[str] = []
        largest, number = 0.0, 0
        for name, messages in subject.singles.items():
            whole = tuple(subject.scorer.encoder.encode(messages).input_ids)
            for share in _SHARES:
                limit = int(share * len(whole))
                encoder = load_encoder(ModelConfig(str(subject.folder), max_length=limit))
                (cut,) = encoder.encode_all([messages], side)
                if isinstance(cut, ScoreError):
                    # Not even the last turn fits, which is never cut on the left.
                    if side == "left" and cut.code == "conversation_too_long":
                        continue
                    broken.append(f"{name}: {cut.code}")
                    continue
                ids = tuple(cut.input_ids)
                if fault := _cut_fault(subject, messages, (whole, ids, limit), side):
                    broken.append(f"{name} to {limit} tokens: {fault}")
                (ours,) = score_ids(subject.scorer, [ids])
                largest = max(largest, abs(ours - subject.reference.reward_from_ids(ids)))
                number += 1
        passed = not broken and number > 0 and largest <= FLOAT32_TOLERANCE
        about = "; ".join(broken) or f"{number} cut conversations, markers whole"
        allowed = f"{FLOAT32_TOLERANCE:.2g}"
        yield Finding(f"truncation, {side}", f"{largest:.2g}", allowed, passed, about)


def _cut_fault(
    subject: Subject, messages: Messages, lengths: tuple[Ids, Ids, int], side: str
) -> str:
    """What is wrong with a cut conversation; empty if nothing is.

    Args:
        subject: whose tokenizer and template to use.
        messages: the whole conversation.
        lengths: token ids of the whole conversation and of what is left, and the limit.
        side: on which it was cut.
    """
    whole, ids, limit = lengths
    if len(ids) > limit:
        return f"{len(ids)} tokens are left"
    if side == "right":
        return "" if ids == whole[:limit] else "not the first tokens"
    tokenizer = subject.reference.tokenizer
    left = tokenizer.decode(ids, skip_special_tokens=False)
    complete = tokenizer.decode(whole, skip_special_tokens=False)
    last = tokenizer.apply_chat_template(messages[-1:], tokenize=False)
    answer = last[last.index(messages[-1]["content"]) :] if messages[-1]["content"] else ""
    if not left.endswith(answer):
        return "the last turn is not whole"
    markers = [str(token) for token in tokenizer.all_special_tokens if str(token) in complete]
    if markers and not left.startswith(tuple(markers)):
        return "it does not begin with a marker"
    if messages[0]["role"] == "system" and messages[0]["content"] not in left:
        return "the system prompt is gone"
    return ""


def check_self_check(subject: Subject) -> Iterator[Finding]:
    """The comparison at load passes, and refuses a switch that the engine does not follow."""
    check = subject.scorer.loaded_model.self_check
    assert check is not None
    largest = check.compare(subject.scorer.score_ids(check.sequences).outputs)
    tolerance = min(min(allowed) for allowed in check.tolerances)
    yield Finding(
        "self-check at load",
        f"{largest:.2g}",
        f"{tolerance:.2g}",
        largest <= tolerance,
        f"{len(check.sequences)} built-in conversations and prefixes of them",
    )
    # As plain transformers computes `is_causal: false`, which a load refuses by its name already.
    loaded = subject.scorer.loaded_model
    model = read_weights(loaded.checkpoint, loaded.model.dtype).eval()
    model.config.is_causal = False
    bidirectional = build_self_check(
        model, loaded.head, loaded.devices, encode_samples(loaded.encoder)
    )
    try:
        bidirectional.compare(subject.scorer.score_ids(bidirectional.sequences).outputs)
        said = "accepted"
    except ModelLoadError:
        said = "refused"
    yield Finding(
        "bidirectional mask", said, "refused", said == "refused", "a switch of the config"
    )


def check_quantization(subject: Subject) -> Iterator[Finding]:
    """Rankings and rewards of quantized layers against those of float32."""
    names = pair_names(subject)
    exact = dict(zip(names, _paired(subject, subject.expected), strict=True))
    modes: tuple[Quantization, ...] = ("int8-weights", "int8", "fp8-weights")
    for mode in modes:
        if importlib.util.find_spec("torchao") is None:
            yield Finding(f"quantization, {mode}", "-", "-", None, "torchao is not installed")
            continue
        scorer = subject.load(quantization=mode)
        grouped = [messages for group in subject.groups.values() for messages in group]
        ours = _paired(subject, rewards(scorer.score(grouped)))
        del scorer
        yield _agreement_finding(mode, dict(zip(names, ours, strict=True)), exact)
    yield from _check_emulated_fp8(subject, names, exact)


def _check_emulated_fp8(
    subject: Subject, names: Sequence[str], exact: dict[str, float]
) -> Iterator[Finding]:
    """What `fp8` computes on CUDA: weights and activations in e4m3 with a scale for each row."""
    plain = Reference(subject.folder)
    emulate_fp8(plain.model.model.layers)
    grouped = [messages for group in subject.groups.values() for messages in group]
    ours = _paired(subject, [plain.reward(messages) for messages in grouped])
    yield _agreement_finding("fp8, emulated", dict(zip(names, ours, strict=True)), exact)


def emulate_fp8(layers: torch.nn.Module) -> None:
    """Let linear layers compute with weights and activations rounded to e4m3, in place.

    Each row has a scale of its own, the largest magnitude over 448, as torchao's `PerRow` has;
    products are float32.
    """
    for linear in layers.modules():
        if isinstance(linear, torch.nn.Linear):
            linear.weight.data = round_rows(linear.weight.data)
            linear.register_forward_pre_hook(lambda _m, args: (round_rows(args[0]), *args[1:]))


def round_rows(values: torch.Tensor) -> torch.Tensor:
    """Round to float8 e4m3 with a scale for each row; float32 `[..., num_columns]`."""
    scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-12) / _E4M3_MAX
    return (values / scale).to(torch.float8_e4m3fn).to(values.dtype) * scale


def pair_names(subject: Subject) -> list[str]:
    """A name for either side of every pair of answers to one prompt."""
    return [
        f"{group}-{one}-{other}/{side}"
        for group, answers in subject.groups.items()
        for one, other in itertools.combinations(range(len(answers)), 2)
        for side in ("chosen", "rejected")
    ]


def _paired(subject: Subject, flat: Sequence[float]) -> list[float]:
    """Rewards in the order of `pair_names`, from those of the groups' answers."""
    paired: list[float] = []
    start = 0
    for answers in subject.groups.values():
        for one, other in itertools.combinations(range(len(answers)), 2):
            paired += [flat[start + one], flat[start + other]]
        start += len(answers)
    return paired


def _agreement_finding(mode: str, ours: dict[str, float], exact: dict[str, float]) -> Finding:
    # How much is lost says something of the model. That a quantized engine gives the rewards of its
    # own rounded weights is compared at every load.
    pairs, difference = compare_rankings(ours, exact)
    assert pairs.ours is not None
    return Finding(
        f"quantization, {mode}",
        f"{pairs.ours:.0%}, {difference.ours:.2g}",
        f"{1 - pairs.tolerance:.0%}, {difference.tolerance:.2g} in `verify`",
        None,
        f"{pairs.note}; mean absolute difference",
    )


CHECKS: dict[str, Callable[[Subject], Iterator[Finding]]] = {
    "tokens": check_tokens,
    "parity": check_parity,
    "deterministic": check_determinism,
    "sharing": check_sharing,
    "truncation": check_truncation,
    "self-check": check_self_check,
    "quantization": check_quantization,
}


def rewards(results: Sequence[Reward | ScoreError]) -> list[float]:
    """Rewards alone.

    Raises:
        ValueError: a conversation got an error.
    """
    for result in results:
        if isinstance(result, ScoreError):
            raise ValueError(f"{result.code}: {result.message}")
    return [result.reward for result in results if isinstance(result, Reward)]


def score_ids(scorer: RewardScorer, sequences: Sequence[Ids]) -> list[float]:
    """Rewards of token ids.

    Raises:
        ValueError: a sequence got an error.
    """
    found: list[float] = []
    for reward in scorer.score_ids(sequences).outputs:
        if isinstance(reward, ScoreError):
            raise ValueError(f"{reward.code}: {reward.message}")
        found.append(reward)
    return found


def differences(ours: Sequence[float], expected: Sequence[float]) -> list[float]:
    """Absolute differences, one for each reward."""
    return [abs(a - b) for a, b in zip(ours, expected, strict=True)]


__all__ = ["CHECKS", "Finding", "Subject"]
