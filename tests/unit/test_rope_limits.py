"""Position limit of a model with scaled rotary embeddings, and correct rewards up to the limit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit_config, refusal
from reference import Reference

from rm_core import ModelConfig, RewardScorer, open_checkpoint

CopyOf = Callable[..., Path]
# max_position_embeddings of every config in this file.
POSITIONS = 128
HALF_HEAD = 8

SHORT, LONG = [1.0 + i / 8 for i in range(HALF_HEAD)], [4.0 + i for i in range(HALF_HEAD)]
YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 2.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SCALINGS: dict[str, tuple[dict[str, Any], int]] = {
    "none": ({}, 128),
    "default": ({"rope_type": "default"}, 128),
    "linear": ({"rope_type": "linear", "factor": 2.5}, 320),
    "yarn": ({**YARN, "original_max_position_embeddings": 64}, 256),
    "yarn, raised already": ({**YARN, "factor": 2, "original_max_position_embeddings": 64}, 128),
    "yarn without the original": (YARN, 512),
    "yarn without a factor": (
        {**YARN, "factor": None, "original_max_position_embeddings": 64}, 128
    ),
    "yarn, with options": (
        {**YARN, "original_max_position_embeddings": 64, "beta_fast": 16.0, "beta_slow": 2.0,
         "attention_factor": 1.1, "truncate": False},
        256,
    ),
    "llama3": (LLAMA3, 128),
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, 128),
    "longrope": (LONGROPE, 64),
}  # fmt: skip


def write_scaling(folder: Path, scaling: dict[str, Any], form: str) -> Path:
    """Write a scaling in the form of transformers version 5 or version 4."""
    theta = 10_000.0
    edit_config(folder, rope_parameters=None, rope_theta=None, max_position_embeddings=POSITIONS)
    if form == "rope_parameters":
        edit_config(
            folder, rope_parameters={"rope_type": "default"} | scaling | {"rope_theta": theta}
        )
        return folder
    if form == "type":
        scaling = {("type" if key == "rope_type" else key): scaling[key] for key in scaling}
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_theta": theta, "rope_scaling": scaling or None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("family", ["llama-v0.2", "qwen3", "gemma2"])
@pytest.mark.parametrize("form", ["rope_parameters", "rope_type", "type"])
@pytest.mark.parametrize(("scaling", "limit"), SCALINGS.values(), ids=SCALINGS.keys())
def test_position_limit_follows_scaling(
    scaling: dict[str, Any], limit: int, form: str, family: str, copy_of: CopyOf
) -> None:
    folder = write_scaling(copy_of(family), scaling, form)
    checkpoint = open_checkpoint(ModelConfig(str(folder)))
    assert checkpoint.max_positions == checkpoint.max_length == limit


@pytest.mark.parametrize("family", ["llama-v0.2", "qwen3", "gemma2"])
@pytest.mark.parametrize(("scaling", "limit"), SCALINGS.values(), ids=SCALINGS.keys())
def test_rewards_up_to_the_limit_equal_transformers(
    scaling: dict[str, Any], limit: int, family: str, copy_of: CopyOf
) -> None:
    if scaling.get("factor", 1) is None:
        pytest.skip("transformers compares the factor of None; the limit is tested above")
    folder = write_scaling(copy_of(family), scaling, "rope_parameters")
    scorer = RewardScorer.load(ModelConfig(str(folder), device="cpu", max_length=limit))
    assert scorer.encoder.max_length == limit
    torch.manual_seed(1)
    lengths = (limit, 5, limit // 2, limit - 1, 40, limit)
    ids = [tuple(torch.randint(20, 400, (n,)).tolist()) for n in lengths]
    ids.append((*ids[0][: limit // 2], *ids[1]))  # shares a prefix
    rewards = scorer.score_ids(ids).outputs
    reference = Reference(folder)  # `dynamic` stores the longest sequence so far
    for sequence, reward in zip(ids, rewards, strict=True):
        with torch.inference_mode():
            expected = reference.model(torch.tensor([sequence])).logits[0, 0].item()
        assert reward == pytest.approx(expected, abs=1e-4)
    assert rewards == scorer.score_ids(ids).outputs
    assert f"the model has {limit} positions (" in refusal(folder, max_length=limit + 1)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_refusal_explains_limit_of_batch_dependent_scaling(kind: str, copy_of: CopyOf) -> None:
    scaling, limit = SCALINGS[kind]
    folder = write_scaling(copy_of("llama-v0.2"), scaling, "rope_type")
    detail = refusal(folder, max_length=limit + 1)
    assert kind in detail
    assert "depend on the longest conversation of its batch" in detail


def test_top_level_original_positions_take_precedence(copy_of: CopyOf) -> None:
    folder = write_scaling(copy_of("llama-v0.2"), SCALINGS["yarn"][0], "rope_type")
    edit_config(folder, original_max_position_embeddings=32)
    assert open_checkpoint(ModelConfig(str(folder))).max_positions == 128
