"""The shape of a checkpoint: parameters, bytes and FLOPs, compared with the models themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu.memory_meter import operations
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from vision import build_vision_model

from rm_core import ModelLoadError, load_catalog, pack, seeds_dir
from serve.capacity.shape import ModelShape, find_model_shape

DEMO = seeds_dir() / "demo"


def build_meta_model(shape: ModelShape, family: str) -> torch.nn.Module:
    """Return transformers' classifier of a shape, on the meta device."""
    config = AutoConfig.for_model(
        family,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        num_labels=1,
    )
    with torch.device("meta"):
        model: torch.nn.Module = AutoModelForSequenceClassification.from_config(config)
    return model


@pytest.mark.parametrize("entry", load_catalog(), ids=lambda entry: entry.name)
def test_parameters_match_catalogue(entry) -> None:  # type: ignore[no-untyped-def]
    assert find_model_shape(entry.id).num_parameters / 1e9 == pytest.approx(
        entry.parameters.value, abs=6e-4
    )


@pytest.mark.parametrize(
    "name",
    [
        "Skywork-Reward-V2-Llama-3.2-1B",
        "Skywork-Reward-V2-Qwen3-0.6B",
        "Skywork-Reward-Gemma-2-27B-v0.2",
    ],
)
def test_parameters_match_transformers(name: str) -> None:
    shape = find_model_shape(name)
    model = build_meta_model(shape, shape.family)
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("family", "layout"),
    [("qwen2_5_vl", "old"), ("qwen2_5_vl", "new"), ("qwen2_vl", "old"), ("qwen3_vl", "old")],
)
def test_parameters_of_vision_language_models(family: str, layout: str, tmp_path: Path) -> None:
    shape = find_model_shape(str(build_vision_model(tmp_path, family, layout)))
    model = AutoModel.from_config(AutoConfig.from_pretrained(tmp_path))
    row = shape.hidden_size
    assert shape.num_parameters == sum(p.numel() for p in model.parameters()) + row


def test_vision_parameters_of_catalogue_match_transformers() -> None:
    name = "Skywork-VL-Reward-7B"
    config = Qwen2_5_VLVisionConfig(hidden_size=1_280, out_hidden_size=3_584)
    with torch.device("meta"):
        tower = AutoModel.from_config(config)
    expected = sum(parameter.numel() for parameter in tower.parameters())
    assert find_model_shape(name).num_vision_parameters == expected


@pytest.mark.parametrize(("prompt", "response", "group"), [(0, 7, 1), (30, 9, 4), (5, 40, 2)])
@pytest.mark.parametrize("window", [None, 16])
def test_flops_match_gpu_check(prompt: int, response: int, group: int, window: int | None) -> None:
    family = "gemma2" if window else "llama"
    config = AutoConfig.for_model(
        family, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=99, sliding_window=window, num_labels=1,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    shape = ModelShape("m", family, 32, 64, 3, 4, 2, 8, 99, 999, window, "here")
    sequences = [(*range(prompt), *([1_000 + g] * response)) for g in range(group)]
    (tree,) = pack(sequences, 10_000).batches
    assert shape.count_group_flops(prompt, response, group) == operations(model, tree)


def test_shape_of_a_local_folder() -> None:
    shape = find_model_shape("demo")
    model = AutoModelForSequenceClassification.from_pretrained(DEMO)
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())
    assert shape.source == "its config.json"


def test_weights_over_several_devices() -> None:
    shape = find_model_shape("Skywork-Reward-Gemma-2-27B-v0.2")
    on_one, on_two = shape.weight_bytes(2), shape.weight_bytes(2, 2)
    assert on_one == 2 * shape.num_parameters
    # The fullest device has 23 of 46 layers and the embedding.
    assert on_two == 2 * (23 * shape.layer_parameters + shape.vocab_size * shape.hidden_size)
    assert on_one / 2 < on_two < on_one


def test_unknown_model_raises_error() -> None:
    with pytest.raises(ModelLoadError):
        find_model_shape("./no/such/folder")
