"""Layers on several devices: same rewards, and every layer's inputs are on its device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rm_core import BatchConfig, ModelConfig, ModelLoadError, RewardScorer
from rm_core.model.placement import get_stage, install_transfer_hooks, move_to_devices
from serve.config.model_settings import ModelSettings

CPU, META = torch.device("cpu"), torch.device("meta")
TALKS = [
    [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": str(i) * (i + 1)}]
    for i in range(12)
]


def test_stages_are_in_order_and_of_similar_size() -> None:
    assert [get_stage(i, 4, 2) for i in range(4)] == [0, 0, 1, 1]
    assert [get_stage(i, 7, 3) for i in range(7)] == [0, 0, 0, 1, 1, 2, 2]
    assert {get_stage(i, 80, 1) for i in range(80)} == {0}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", ["llama-v0.1", "qwen3", "gemma2"])
def test_two_stages_give_rewards_of_one_device(
    name: str, deterministic: bool, checkpoint_of: Callable[[str], Path]
) -> None:
    """Both stages are on the CPU, each with its own plan; rewards are equal to the last bit."""
    config = ModelConfig(str(checkpoint_of(name)), device="cpu", deterministic=deterministic)
    budget = BatchConfig(max_batch_tokens=128)
    # Neither has the prompts of its self-check in its cache.
    plain, split = (RewardScorer(RewardScorer.load(config).loaded_model, budget) for _ in range(2))
    install_transfer_hooks(split.loaded_model.model, (CPU, CPU))
    loaded = dataclasses.replace(split.loaded_model, devices=(CPU, CPU))
    assert RewardScorer(loaded, budget).score(TALKS) == plain.score(TALKS)


def test_layer_inputs_are_on_the_device_of_the_layer(checkpoint_of: Callable[[str], Path]) -> None:
    """`meta` is the second device: mixing it with the CPU is an error in torch."""
    scorer = RewardScorer.load(
        # With these settings the linear layers are torch's own, not prepacked.
        ModelConfig(str(checkpoint_of("qwen3")), device="cpu", dtype="bfloat16", attention="eager")
    )
    model: Any = scorer.loaded_model.model
    move_to_devices(model, (CPU, META))
    install_transfer_hooks(model, (CPU, META))
    devices: list[tuple[str, str]] = []
    for layer in model.layers:
        layer.register_forward_pre_hook(
            lambda _layer, args, options: devices.append(
                (args[0].device.type, options["position_embeddings"][0].device.type)
            ),
            with_kwargs=True,
        )
    assert model.norm.weight.device == META
    assert model.embed_tokens.weight.device == CPU
    loaded = dataclasses.replace(
        scorer.loaded_model, devices=(CPU, META), head=scorer.loaded_model.head.to(META)
    )
    (result,) = RewardScorer(loaded).score(TALKS[:1])
    assert result.code == "scoring_failed"  # type: ignore[union-attr]  # meta holds no numbers
    assert len(devices) == model.config.num_hidden_layers
    stages = [get_stage(i, len(devices), 2) for i in range(len(devices))]
    assert devices == [("meta", "meta") if stage else ("cpu", "cpu") for stage in stages]
    assert set(stages) == {0, 1}


def test_more_devices_than_available_are_refused() -> None:
    for device in ("cpu", "auto"):
        if device == "auto" and torch.cuda.device_count() > 1:
            continue
        with pytest.raises(ModelLoadError, match="2 devices were requested"):
            RewardScorer.load(ModelConfig("demo", device=device, num_devices=2))
    with pytest.raises(ModelLoadError, match="`compile` requires a model on one device"):
        ModelConfig("demo", num_devices=2, compile=True)
    with pytest.raises(ModelLoadError, match="num_devices is 0"):
        ModelConfig("demo", num_devices=0)


def test_num_gpus_sets_number_of_devices() -> None:
    def devices(num_gpus: float | None) -> int:
        return ModelSettings(name="demo", num_gpus=num_gpus).to_model_config().num_devices

    assert [devices(n) for n in (None, 0, 0.5, 1, 2)] == [1, 1, 1, 1, 2]
    with pytest.raises(ValueError, match="not a whole number"):
        devices(1.5)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_give_rewards_of_one_gpu(checkpoint_of: Callable[[str], Path]) -> None:
    path = str(checkpoint_of("qwen3"))
    one = RewardScorer.load(ModelConfig(path, device="cuda:0"))
    two = RewardScorer.load(ModelConfig(path, num_devices=2))
    assert two.describe().device == "cuda:0, cuda:1"
    assert two.score(TALKS) == one.score(TALKS)
