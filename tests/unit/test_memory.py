"""Token budget of batches, from memory and shape, verified by the warm-up."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig
from vision import PATCH_SIZES, build_vision_model

from rm_core import BatchConfig, DeviceMemoryError, ModelConfig, RewardScorer
from rm_core.memory import (
    VisionCacheSize,
    build_full_batch,
    choose_budget,
    choose_prefix_cache_size,
    choose_vision_cache_bytes,
    compute_image_bytes,
    estimate_bytes_per_token,
    estimate_tower_bytes,
    fit_budget,
)
from rm_core.model.loading import load_model
from rm_core.packing import PrefixTree
from serve.capacity.shape import find_model_shape

ScorerOf = Callable[..., RewardScorer]
LLAMA_8B = SimpleNamespace(
    hidden_size=4_096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
CUDA = torch.device("cuda")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are created in its context, at their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._live = 0
        self._sizes: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._sizes:
                    self._sizes[storage] = size = storage.nbytes()
                    self._live += size
                    weakref.finalize(storage, self._free, size)
        self.peak = max(self.peak, self._live)
        return out

    def _free(self, size: int) -> None:
        self._live -= size


def set_free_memory(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (num_bytes, 80 << 30))


def test_estimate_bytes_per_token() -> None:
    """Computed by hand: 2 x 4,096 in bfloat16 and in float32, and three times the MLP."""
    assert (
        estimate_bytes_per_token(LLAMA_8B, torch.bfloat16) == 2 * 4_096 * (2 + 4) + 3 * 14_336 * 2
    )
    assert estimate_bytes_per_token(LLAMA_8B, torch.float32) == 2 * 4_096 * (4 + 4) + 3 * 14_336 * 4


def test_budget_follows_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def budget(num_bytes: int, requested: int | None = None) -> int:
        set_free_memory(monkeypatch, num_bytes)
        chosen = choose_budget(requested, LLAMA_8B, torch.bfloat16, CUDA)
        assert chosen.is_automatic == (requested is None)
        return chosen.max_batch_tokens

    assert budget(60 << 30) == 16_384
    assert budget(1 << 30) == int(0.8 * 2**30) // 135_168 // 256 * 256 == 6_144
    assert budget(1 << 20) == 256
    assert budget(1 << 20, requested=9_999) == 9_999


@pytest.mark.parametrize(
    ("name", "num_tokens"),
    [
        ("Skywork-Reward-V2-Qwen3-0.6B", 65_536),
        ("Skywork-Reward-V2-Qwen3-8B", 16_384),
        ("Skywork-Reward-V2-Llama-3.1-8B", 16_384),
        ("Skywork-Reward-Gemma-2-27B-v0.2", 4_096),
    ],
)
def test_budget_bounds_the_time_of_a_batch(name: str, num_tokens: int) -> None:
    """About 0.4 s on a fast GPU, and no more than keeps the GPU busy."""
    budget = fit_budget(100 << 30, find_model_shape(name), torch.bfloat16)
    assert budget.max_batch_tokens == num_tokens
    waits = "would make lone requests wait" in budget.reason
    assert waits == (num_tokens < 65_536)
    fixed = fit_budget(100 << 30, find_model_shape(name), torch.bfloat16, deterministic=True)
    assert fixed.max_batch_tokens == min(8_192, num_tokens)


def test_build_full_batch_fills_the_budget() -> None:
    tree = build_full_batch(1_000, 300)
    assert tree.num_tokens == 1_000
    assert [len(sequence) for sequence in tree.sequences] == [100, 300, 300, 300]


@pytest.mark.parametrize("automatic", [True, False])
def test_warm_up_verifies_the_largest_batch(automatic: bool, scorer_of: ScorerOf) -> None:
    """An automatic budget is halved until it fits; a requested budget is refused."""
    batching = None if automatic else BatchConfig(4_096)
    loaded_model = scorer_of("qwen3").loaded_model
    tried: list[int] = []

    def full(loaded: Any, tree: PrefixTree, *_: int) -> list[float]:
        tried.append(tree.num_tokens)
        assert max(map(len, tree.sequences)) <= loaded.encoder.max_length
        if tree.num_tokens > 1_500:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [0.0] * len(tree.sequences)

    scorer = RewardScorer(loaded_model, batching, full)
    if not automatic:
        with pytest.raises(DeviceMemoryError, match="max_batch_tokens = 4096 does not fit"):
            scorer.warm_up(largest_batch=True)
        return
    scorer.warm_up(largest_batch=True)
    assert tried[1:] == [4_096, 2_048, 1_024]
    assert scorer.describe().max_batch_tokens == 1_024
    assert "2048 tokens did not fit" in scorer.describe().max_batch_tokens_reason


def test_failed_batch_is_retried_in_halves(
    scorer_of: ScorerOf,
) -> None:
    sizes: list[int] = []

    def full(loaded: Any, tree: PrefixTree, *_: int) -> list[float]:
        sizes.append(len(tree.sequences))
        if len(tree.sequences) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [float(sequence[-1]) for sequence in tree.sequences]

    scorer = RewardScorer(scorer_of("qwen3").loaded_model, forward=full)
    sequences = [(1, token) for token in range(20, 28)]
    assert scorer.score_ids(sequences).outputs == tuple(float(token) for token in range(20, 28))
    assert sizes == [8, 4, 2, 2, 4, 2, 2]


def load_vision_config(folder: Path, family: str) -> Any:
    return AutoConfig.from_pretrained(build_vision_model(folder, family))


def test_estimate_tower_bytes(tmp_path: Path) -> None:
    """Computed by hand for a width of 64, MLPs of 96 and 128, and patches of 1,176 numbers."""
    newer = load_vision_config(tmp_path / "a", "qwen2_5_vl").vision_config
    residual = 1_176 * (4 + 2) + 2 * 64 * (2 + 4)
    in_attention = 7 * 64 * 2 + 6 * 64 * 4
    assert estimate_tower_bytes(newer, torch.bfloat16, 10) == 10 * (residual + in_attention)
    older = load_vision_config(tmp_path / "b", "qwen2_vl").vision_config
    older.mlp_ratio = 20
    residual = 1_176 * (4 + 4) + 2 * 64 * (4 + 4)
    assert estimate_tower_bytes(older, torch.float32, 1) == residual + 3 * 20 * 64 * 4
    newest = load_vision_config(tmp_path / "c", "qwen3_vl").vision_config
    residual = 1_536 * (4 + 2) + 2 * 64 * (2 + 4)
    kept = 2 * 64 * 2 // 4  # two layers' features of a token, for each of its four patches
    assert estimate_tower_bytes(newest, torch.bfloat16, 10) == 10 * (residual + in_attention + kept)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_tower_needs_at_most_its_estimate(family: str, dtype: Any, tmp_path: Path) -> None:
    tower: Any = load_model(
        ModelConfig(str(build_vision_model(tmp_path, family)), device="cpu", dtype=dtype)
    ).model.visual
    side = 32
    with torch.inference_mode(), LiveBytes() as memory:
        pixels = torch.randn(side * side, 6 * PATCH_SIZES[family] ** 2)
        tower(pixels.to(tower.dtype), torch.tensor([[1, side, side]]))
    estimate = estimate_tower_bytes(tower.config, tower.dtype, side * side)
    assert memory.peak <= estimate <= 3 * memory.peak


def test_budget_leaves_memory_to_the_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    set_free_memory(monkeypatch, 3 << 30)
    budget = choose_budget(None, LLAMA_8B, torch.bfloat16, CUDA, reserved_bytes=2 << 30)
    assert budget.max_batch_tokens == 6_144
    assert "1.0 GiB free" in budget.reason
    sizes = [
        choose_prefix_cache_size(None, LLAMA_8B, torch.bfloat16, [CUDA] * 2, 256, reserved)
        for reserved in (0, 2 << 30, 4 << 30)
    ]
    assert sizes[0].num_tokens > sizes[1].num_tokens > sizes[2].num_tokens == 0
    assert "GiB that weights and a batch leave free" in sizes[1].reason


def test_vision_cache_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = load_vision_config(tmp_path, "qwen2_5_vl")

    def choose(free: int, requested: int | None = None) -> VisionCacheSize:
        set_free_memory(monkeypatch, free)
        return choose_vision_cache_bytes(
            requested, config, torch.bfloat16, CUDA, 100 * 28 * 28, reserved_bytes=1 << 30
        )

    assert choose(0, 5).num_bytes == 5
    assert "requested by the setting `vision_cache_bytes`" in choose(0, 5).reason
    assert choose(10 << 30).num_bytes == 256 * 100 * 64 * 2
    assert choose(10 << 30).reason == "256 images of the largest size"
    assert choose((1 << 30) + 1_000).num_bytes == 50
    assert "5.0% of the 0.0 GiB" in choose((1 << 30) + 1_000).reason
    assert choose(0).num_bytes == 0


def test_deepstack_features_are_part_of_an_image(tmp_path: Path) -> None:
    config = load_vision_config(tmp_path, "qwen3_vl")
    assert compute_image_bytes(config, torch.bfloat16, 100 * 32 * 32) == 100 * 3 * 64 * 2
