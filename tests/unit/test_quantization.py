"""Quantization shows in the fingerprint, is verified by its ranking, and is refused early."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import refusal
from reference import CONVERSATIONS

from rm_core import ModelConfig, ModelLoadError, Reward, RewardScorer
from rm_core.compilation import CompilationChoice
from rm_core.model.quantization import check_quantization, quantize, silence_torchao
from rm_core.types import BatchResult
from rm_core.verification import compare_rankings, verify

silence_torchao()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchao.quantization import quant_api

PathOf = Callable[[str], Path]
ScorerOf = Callable[..., RewardScorer]

# torchao causes deprecation warnings of torch on import.
pytestmark = pytest.mark.filterwarnings("ignore")


def rewards(scorer: RewardScorer) -> list[float]:
    results = scorer.score(CONVERSATIONS)
    assert all(isinstance(result, Reward) for result in results), results
    return [result.reward for result in results if isinstance(result, Reward)]


def numbers(scored: BatchResult) -> list[float]:
    assert all(isinstance(reward, float) for reward in scored.outputs), scored.outputs
    return [reward for reward in scored.outputs if isinstance(reward, float)]


@pytest.mark.parametrize("quantization", ["int8", "int8-weights", "fp8-weights"])
@pytest.mark.parametrize("name", ["llama-v0.2", "qwen3", "gemma2"])
def test_quantized_rewards_are_close_and_fingerprint_names_quantization(
    name: str, quantization: str, scorer_of: ScorerOf, checkpoint_of: PathOf
) -> None:
    config = ModelConfig(
        str(checkpoint_of(name)),
        device="cpu",
        quantization=quantization,  # type: ignore[arg-type]
    )
    scorer = RewardScorer.load(config)
    assert scorer.fingerprint.dtype == f"float32+{quantization}"
    exact, ours = rewards(scorer_of(name)), rewards(scorer)
    mean = sum(abs(a - b) for a, b in zip(exact, ours, strict=True)) / len(ours)
    assert 1e-4 < mean < 1
    weight = scorer.loaded_model.model.get_submodule("layers.0.mlp.up_proj").weight
    assert type(weight) is not torch.nn.Parameter or weight.dtype != torch.float32


@pytest.fixture
def fp8_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torchao run its fp8 arithmetic on the CPU, where torch emulates the scaled product."""
    monkeypatch.setattr("rm_core.model.loading.check_quantization", lambda *_, **__: None)
    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda _: None)


def can_scale_rows() -> bool:
    """Return whether torch multiplies fp8 matrices with one scale a row on the CPU."""
    matrix, scale = torch.zeros(16, 16).to(torch.float8_e4m3fn), torch.ones(16, 1)
    try:
        torch._scaled_mm(matrix, matrix.t(), scale, scale.t(), out_dtype=torch.bfloat16)
    except RuntimeError:
        return False
    return True


NEEDS_ROW_SCALES = pytest.mark.skipif(
    not can_scale_rows(), reason="torch 2.11 has no fp8 product with scales of rows on the CPU"
)


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        pytest.param("fp8", "bfloat16", marks=NEEDS_ROW_SCALES),
        ("int8", "bfloat16"),
        ("int8", "float32"),
    ],
)
@pytest.mark.parametrize("name", ["llama-v0.2", "qwen3", "gemma2"])
@pytest.mark.usefixtures("fp8_on_cpu")
def test_quantized_reward_does_not_depend_on_batch(
    name: str, quantization: Any, dtype: Any, checkpoint_of: PathOf
) -> None:
    """With one scale for all tokens every reward changed, by up to 2.6.

    A product of another shape may round differently, and a value between two quantized values may
    then change a reward as well; this is rare.
    """
    config = ModelConfig(
        str(checkpoint_of(name)),
        device="cpu",
        dtype=dtype,
        attention="eager",
        quantization=quantization,
    )
    scorer = RewardScorer.load(config)
    sequences = [scorer.encoder.encode(messages).input_ids for messages in CONVERSATIONS]
    together = numbers(scorer.score_ids(sequences))
    backwards = numbers(scorer.score_ids(sequences[::-1]))[::-1]
    alone = [numbers(scorer.score_ids([sequence]))[0] for sequence in sequences]
    for other in (together, backwards):
        moved = [abs(a - b) > 1e-3 for a, b in zip(other, alone, strict=True)]
        assert sum(moved) <= 4, moved
    assert max(alone) - min(alone) > 1


@pytest.mark.usefixtures("fp8_on_cpu")
@pytest.mark.parametrize("quantization", ["int8", pytest.param("fp8", marks=NEEDS_ROW_SCALES)])
def test_each_token_has_a_scale(quantization: Any) -> None:
    """A neighbor that is a thousand times as large does not change the other tokens."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(64, 32, bias=False, dtype=torch.bfloat16))
    quantize(layers, quantization)
    rows = torch.randn(1, 5, 64, dtype=torch.bfloat16)
    loud = torch.cat([rows, 1000 * torch.randn(1, 1, 64, dtype=torch.bfloat16)], 1)
    rows[:, 3] = loud[:, 3] = 0  # as the embedding of a padding token
    with torch.inference_mode():
        expected, ours = layers(rows), layers(loud)[:, :5]
    torch.testing.assert_close(ours, expected, atol=1e-2, rtol=1e-2)
    assert float(expected.abs().max()) > 0.5


@pytest.mark.usefixtures("fp8_on_cpu")
def test_layer_left_unquantized_is_refused() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(64, 24, bias=False, dtype=torch.bfloat16))
    with pytest.raises(ModelLoadError, match=r"layer 0 \(24 x 64\).*multiples of 16"):
        quantize(layers, "fp8")


@pytest.mark.usefixtures("fp8_on_cpu")
@pytest.mark.parametrize("quantization", ["int8", "int8-weights", "fp8", "fp8-weights"])
def test_zero_rows_in_weight_are_refused_or_give_zero(quantization: Any) -> None:
    """As in a pruned checkpoint."""
    layers = torch.nn.Sequential(torch.nn.Linear(64, 32, bias=False, dtype=torch.bfloat16))
    layers[0].weight.data[5] = 0
    if quantization.startswith("fp8"):
        with pytest.raises(ModelLoadError, match="rows of zeros"):
            quantize(layers, quantization)
        return
    quantize(layers, quantization)
    with torch.inference_mode():
        assert float(layers(torch.ones(1, 64, dtype=torch.bfloat16))[0, 5]) == 0


def test_torchao_failure_is_refused() -> None:
    """The failure is torchao's own check of the hardware."""
    layers = torch.nn.Sequential(torch.nn.Linear(64, 32, bias=False, dtype=torch.bfloat16))
    with pytest.raises(ModelLoadError, match=r"'fp8' failed: AssertionError: .*use another quan"):
        quantize(layers, "fp8")


COMPILED: dict[str, Any] = {
    "deterministic": False,
    "compilation": CompilationChoice(True, "requested by the setting `compile`"),
}


@pytest.mark.parametrize("quantization", ["int8", "fp8", "int8-weights", "fp8-weights"])
def test_quantized_activations_need_compiled_layers_on_cuda(
    quantization: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    for device in map(torch.device, ("cuda", "cpu")):
        if quantization == "fp8" and device.type == "cpu":
            continue
        compilation = CompilationChoice(False, "layers on several devices are not compiled")
        check_quantization(quantization, device, torch.bfloat16, **COMPILED)
        options = {**COMPILED, "compilation": compilation}
        if device.type == "cpu" or quantization.endswith("weights"):
            check_quantization(quantization, device, torch.bfloat16, **options)
            continue
        with pytest.raises(
            ModelLoadError, match=r"not compiled \(layers on several devices"
        ) as why:
            check_quantization(quantization, device, torch.bfloat16, **options)
        assert f"use '{quantization}-weights'" in why.value.detail


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fp8_requires_bfloat16(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    cuda = torch.device("cuda")
    check_quantization("fp8", cuda, torch.bfloat16, **COMPILED)
    with pytest.raises(ModelLoadError, match=f"not '{str(dtype)[6:]}'; use dtype 'bfloat16'"):
        check_quantization("fp8", cuda, dtype, **COMPILED)
    check_quantization("fp8-weights", cuda, dtype, **COMPILED)


def test_old_torchao_is_refused(checkpoint_of: PathOf, monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: "0.17.0" if name == "torchao" else version(name)
    )
    reason = refusal(checkpoint_of("qwen3"), quantization="int8")
    assert "needs torchao 0.18 or newer, and 0.17.0 is installed" in reason


def test_verify_reports_pair_agreement_of_quantized_model(checkpoint_of: PathOf) -> None:
    config = ModelConfig(str(checkpoint_of("qwen3")), device="cpu", quantization="int8-weights")
    checks = {check.name: check for check in verify(RewardScorer.load(config))}
    pairs = checks.pop("agreement/pairs")
    assert pairs.ours is not None
    assert 0.5 < pairs.ours <= 1
    assert "pairs, against float32" in pairs.note
    difference = checks.pop("agreement/mean absolute difference")
    assert difference.ours is not None
    assert 1e-4 < difference.ours < 1
    assert len(checks) > 50
    assert all(check.passed for check in checks.values())


def test_compare_rankings_gives_known_agreement() -> None:
    exact = {"a/chosen": 2.0, "a/rejected": 1.0, "b/chosen": -1.0, "b/rejected": 3.0}
    pairs, difference = compare_rankings(exact | {"b/chosen": 4.0}, exact)
    assert (pairs.ours, pairs.passed, pairs.note) == (0.5, False, "1 of 2 pairs, against float32")
    assert (difference.ours, difference.passed) == (1.25, False)
    pairs, difference = compare_rankings(exact | {"a/chosen": 2.1}, exact)
    assert (pairs.ours, pairs.passed) == (1.0, True)
    assert difference.ours == pytest.approx(0.025)
    assert difference.passed
    assert compare_rankings({"a/chosen": 1.0}, exact) == []


def test_unsupported_quantization_is_refused(
    checkpoint_of: PathOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint_of("qwen3")
    assert "compute capability 8.9" in refusal(folder, quantization="fp8")
    assert "batch-invariant" in refusal(folder, quantization="int8", deterministic=True)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "torchao" else find_spec(name)
    )
    assert "skyreward[quantization]" in refusal(folder, quantization="int8")
