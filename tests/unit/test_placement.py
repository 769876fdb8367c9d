"""Devices, dtypes and other settings that the machine or the checkpoint does not support."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import refusal

from rm_core import BatchConfig, ModelConfig, ModelLoadError
from rm_core.model.loading import load_model

PathOf = Callable[[str], Path]
CopyOf = Callable[..., Path]


SETTINGS = {
    "sdpa for gemma2": ("gemma2", {"attention": "sdpa"}, "softcap", "'eager' or 'auto'"),
    "float16 for gemma2": ("gemma2", {"dtype": "float16"}, "float16", "use 'bfloat16'"),
    "flash on a CPU": ("llama-v0.2", {"attention": "flash_attention_2"}, "needs CUDA", "'auto'"),
    "over the positions": ("qwen3", {"max_length": 2049}, "the model has 2048", "lower max_length"),
    "revision": ("qwen3", {"revision": "main"}, "revision 'main' was requested", "omit the revi"),
}


@pytest.mark.parametrize(("name", "settings", "problem", "advice"), SETTINGS.values(), ids=SETTINGS)
def test_settings_unsuitable_for_checkpoint_are_refused(
    name: str, settings: dict[str, Any], problem: str, advice: str, checkpoint_of: PathOf
) -> None:
    detail = refusal(checkpoint_of(name), **settings)
    assert problem in detail
    assert advice in detail


def test_gemma_without_softcap_in_config_refuses_sdpa(copy_of: CopyOf) -> None:
    folder = copy_of("gemma2")
    config = json.loads((folder / "config.json").read_text())
    config["attn_logit_softcapping"] = None
    (folder / "config.json").write_text(json.dumps(config))
    assert "drops Gemma-2's attention softcap" in refusal(folder, attention="sdpa")
    assert load_model(ModelConfig(str(folder), device="cpu")).attention.name == "eager"


VALUES = {
    "dtype": ({"dtype": "int8"}, "dtype is 'int8'", "allowed: auto, float32, bfloat16, float16"),
    "attention": ({"attention": "flash"}, "attention is 'flash'", "allowed: auto, eager, sdpa"),
    "length": ({"max_length": 0}, "max_length is 0", "give at least 1"),
}


@pytest.mark.parametrize(("settings", "problem", "advice"), VALUES.values(), ids=VALUES.keys())
def test_invalid_setting_values_are_refused(
    settings: dict[str, Any], problem: str, advice: str
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        ModelConfig("demo", **settings)
    assert problem in caught.value.detail
    assert advice in caught.value.detail


def test_empty_name_and_zero_batch_are_refused() -> None:
    with pytest.raises(ModelLoadError, match="name is empty"):
        ModelConfig(" ")
    with pytest.raises(ModelLoadError, match="max_batch_tokens is 0; give at least 1"):
        BatchConfig(max_batch_tokens=0)


@pytest.mark.parametrize("device", ["tpu?", "meta", "mps"])
def test_unsupported_device_is_refused(device: str, checkpoint_of: PathOf) -> None:
    with pytest.raises(ModelLoadError, match="use 'auto', 'cpu' or 'cuda'"):
        load_model(ModelConfig(str(checkpoint_of("qwen3")), device=device))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda_device_is_refused(checkpoint_of: PathOf) -> None:
    with pytest.raises(ModelLoadError, match="finds no CUDA device; use 'auto' or 'cpu'"):
        load_model(ModelConfig(str(checkpoint_of("qwen3")), device="cuda"))


def test_device_without_memory_for_weights_is_refused(
    checkpoint_of: PathOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16 GiB")

    monkeypatch.setattr("transformers.PreTrainedModel.to", full)
    message = refusal(checkpoint_of("qwen3"))
    assert "cannot be moved to cpu: OutOfMemoryError: CUDA out of memory" in message
    assert "use a device with more memory" in message
