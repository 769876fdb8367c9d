"""The vision tower on its device: nothing waits for the device, and positions of parts of a row."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vision import build_vision_model

from rm_core import ModelConfig, RewardScorer
from rm_core.inputs.sample_image import write_png
from rm_core.model.vision import VisionTower, build_mrope_positions, build_patches
from rm_core.types import Encoded

MESSAGES: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Compare"},
            {"type": "image", "image": write_png(300, 200)},
            {"type": "text", "text": "with"},
            {"type": "image", "image": write_png(100, 60)},
        ],
    },
    {"role": "assistant", "content": "The first is larger."},
]


class MixedDevices(TorchDispatchMode):
    """Collects operators whose tensors are on several devices, each of which waits for a copy."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        listed = [
            item for arg in args for item in (arg if isinstance(arg, list | tuple) else [arg])
        ]
        tensors = [item for item in listed if isinstance(item, torch.Tensor) and item.dim()]
        if len({tensor.device for tensor in tensors}) > 1 and func != torch.ops.aten.copy_.default:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_copied_indices_would_be_found() -> None:
    with MixedDevices() as mixed:
        torch.empty(3, device="meta")[torch.tensor([0])]
    assert mixed.found == ["aten.index.Tensor"]


def load(folder: Path, family: str) -> tuple[RewardScorer, Encoded]:
    scorer = RewardScorer.load(ModelConfig(str(build_vision_model(folder / family, family))))
    encoded = scorer.encoder.encode(MESSAGES)
    assert isinstance(encoded, Encoded)
    return scorer, encoded


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_tower_reads_nothing_back_from_its_device(family: str, tmp_path: Path) -> None:
    """Tensors of torch's device `meta` have no values, so that reading one fails."""
    scorer, encoded = load(tmp_path, family)
    model: Any = scorer.loaded_model.model
    device = torch.device("meta")
    model.to(device)
    processor = scorer.encoder.image_tokens.processor  # type: ignore[attr-defined]
    build = functools.partial(
        build_patches,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        rescale_factor=processor.rescale_factor,
        device=device,
    )
    tower = VisionTower(model, device, build)
    tower.max_cache_bytes = 1 << 20
    (tree,) = scorer.pack(
        [encoded.input_ids], images=[placed.image for placed in encoded.images]
    ).batches
    input_ids = torch.zeros(1, tree.num_tokens, dtype=torch.long, device=device)
    with torch.inference_mode(), MixedDevices() as mixed:
        embeddings = tower.build_inputs(tree, input_ids)["inputs_embeds"]
    assert embeddings.shape == (1, encoded.num_tokens, 64)
    assert mixed.found == []
    assert tower.num_encoded == 2
    inputs = tower.build_plain_inputs(encoded)
    with pytest.raises(RuntimeError, match="meta tensor"):
        model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])


def test_positions_from_any_token_on_are_those_of_the_sequence(tmp_path: Path) -> None:
    _, encoded = load(tmp_path, "qwen2_5_vl")
    images = {placed.image.key: placed.image for placed in encoded.images}
    for stop in range(1, encoded.num_tokens + 1):
        path = encoded.input_ids[:stop]
        positions = build_mrope_positions(path, images)
        assert positions.shape == (3, stop)
        for start in range(stop):
            assert torch.equal(build_mrope_positions(path, images, start), positions[:, start:])
