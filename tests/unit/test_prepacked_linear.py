"""Prepacked linear layers on CPUs: the same products, and used only where suitable."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from rm_core import ModelConfig, RewardScorer
from rm_core.model import prepacked_linear
from rm_core.model.prepacked_linear import PrepackedLinear, prepack_linears


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 2_048, 3_000])
def test_prepacked_linear_equals_linear(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias=bias)
    inputs = torch.randn(1, rows, 48)
    with torch.inference_mode():
        torch.testing.assert_close(PrepackedLinear(linear)(inputs), linear(inputs))


def test_prepack_linears_replaces_every_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)))
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    prepack_linears(layers)
    assert not any(isinstance(module, PrepackedLinear) for module in layers.modules())
    monkeypatch.undo()
    prepack_linears(layers)
    kinds = [type(module).__name__ for module in layers.modules()]
    assert kinds == ["Sequential", "PrepackedLinear", "Sequential", "ReLU", "PrepackedLinear"]


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
@pytest.mark.parametrize(
    ("settings", "packed"),
    [
        ({}, True),
        ({"dtype": "bfloat16"}, False),
        ({"deterministic": True}, False),
        pytest.param({"compile": True}, False, marks=pytest.mark.slow),
    ],
)
def test_layers_are_prepacked_only_in_plain_float32(
    settings: dict[str, object], packed: bool, checkpoint_of: Callable[[str], Path]
) -> None:
    config = ModelConfig(str(checkpoint_of("llama-v0.2")), device="cpu", **settings)  # type: ignore[arg-type]
    modules = RewardScorer.load(config).loaded_model.model.modules()
    assert any(isinstance(module, PrepackedLinear) for module in modules) == packed


def test_kernel_cache_is_limited_unless_environment_sets_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the memory of a service grows for hours, with every new length of a row."""
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for first, expected in ((None, ["64", "64"]), ("7", ["7", "64"])):
        if first:
            monkeypatch.setenv(names[0], first)
        runpy.run_path(str(prepacked_linear.__file__))  # as its import in a new process
        assert [os.environ[name] for name in names] == expected
