"""Decoders beyond the three families: served if the packed rows are right, otherwise refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from checkpoints import ARCHITECTURES, build_decoder, edit_config, refusal
from examples import limit_examples
from hypothesis import given
from hypothesis import strategies as st
from reference import CONVERSATIONS
from transformers import AutoModel, AutoModelForSequenceClassification

from rm_core import BatchConfig, ModelConfig, Reward, RewardScorer
from rm_core.attention import install_packed_attention
from rm_core.model.probe import probe_decoder
from rm_core.tolerance import bfloat16_step

SERVED = [
    "qwen2", "mistral", "gemma", "gemma3_text", "olmo2", "olmo3", "phi3", "smollm3", "qwen3_moe",
    "mixtral", "glm4", "starcoder2", "gpt_neox",
]  # fmt: skip
ON_READOUTS = ["qwen2", "mistral", "gemma", "gemma3_text", "qwen3_moe", "mixtral", "starcoder2"]


def rewards_and_references(
    folder: Path, dtype: str = "float32", **settings: Any
) -> tuple[RewardScorer, list[float], list[float]]:
    """Return the scorer, its rewards in small batches, and those of transformers' classifier."""
    config = ModelConfig(str(folder), device="cpu", dtype=dtype, **settings)  # type: ignore[arg-type]
    scorer = RewardScorer(RewardScorer.load(config).loaded_model, BatchConfig(300))
    results = scorer.score(CONVERSATIONS)
    assert all(isinstance(result, Reward) for result in results), results
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        expected = [
            float(model(torch.tensor([scorer.encoder.encode(m).input_ids])).logits[0, 0])
            for m in CONVERSATIONS
        ]
    return scorer, [r.reward for r in results if isinstance(r, Reward)], expected


@pytest.mark.parametrize("name", SERVED)
def test_float32_rewards_equal_those_of_transformers_classifier(name: str, tmp_path: Path) -> None:
    build_decoder(tmp_path, name)
    scorer, rewards, expected = rewards_and_references(tmp_path)
    assert rewards == pytest.approx(expected, abs=1e-4, rel=0)
    assert max(expected) - min(expected) > 1
    # Now with prompts from the prefix cache.
    again = scorer.score(CONVERSATIONS)
    assert [r.reward for r in again if isinstance(r, Reward)] == pytest.approx(expected, abs=1e-4)
    described = scorer.describe()
    assert described.family == name
    if name in ON_READOUTS:
        assert described.readout_layer == "readout tokens only"
    else:
        assert described.readout_layer.startswith("all tokens: the layer")
    if "sliding_window" in str(ARCHITECTURES[name]) and name != "phi3":
        assert described.attention == "eager"
        lengths = [scorer.encoder.encode(m).num_tokens for m in CONVERSATIONS]
        assert sum(length > 64 for length in lengths) >= 3  # twice the window


@pytest.mark.parametrize("name", ["mistral", "olmo2", "smollm3"])
def test_bfloat16_rewards_are_within_two_steps(name: str, tmp_path: Path) -> None:
    build_decoder(tmp_path, name)
    _, rewards, expected = rewards_and_references(tmp_path, "bfloat16")
    for ours, theirs in zip(rewards, expected, strict=True):
        assert abs(ours - theirs) <= 2 * bfloat16_step(theirs)


@pytest.mark.parametrize("name", ["mistral", "olmo2"])
def test_deterministic_rewards_do_not_depend_on_the_batch(name: str, tmp_path: Path) -> None:
    build_decoder(tmp_path, name)
    scorer, rewards, expected = rewards_and_references(tmp_path, deterministic=True)
    assert rewards == pytest.approx(expected, abs=1e-4, rel=0)
    alone = [scorer.score([messages])[0] for messages in CONVERSATIONS]
    assert [r.reward for r in alone if isinstance(r, Reward)] == rewards
    assert scorer.describe().readout_layer.startswith("all tokens: `deterministic`")


def test_settings_that_experts_cannot_follow_are_refused(tmp_path: Path) -> None:
    build_decoder(tmp_path, "qwen3_moe")
    assert "its rewards are not batch-invariant" in refusal(tmp_path, deterministic=True)
    assert "has experts, which hold most" in refusal(tmp_path, quantization="int8-weights")
    described = RewardScorer.load(ModelConfig(str(tmp_path), device="cpu")).describe()
    assert described.compiled_reason.startswith("tokens choose the experts")


@pytest.fixture(scope="module", params=["mistral", "olmo2", "smollm3", "qwen3_moe", "gemma3_text"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RewardScorer, Any]:
    """A scorer and transformers' classifier of the same weights."""
    folder = tmp_path_factory.mktemp(request.param)
    model = build_decoder(folder, request.param)
    return RewardScorer.load(ModelConfig(str(folder), device="cpu")), model


@hypothesis.settings(max_examples=limit_examples(15))
@given(
    sequences=st.lists(
        st.lists(st.integers(20, 22), min_size=1, max_size=90).map(tuple), min_size=1, max_size=30
    ),
    budget=st.integers(1, 500),
)
def test_rewards_of_any_prefix_tree_equal_transformers_classifier(
    pair: tuple[RewardScorer, Any], sequences: list[tuple[int, ...]], budget: int
) -> None:
    scorer, model = pair
    outputs = RewardScorer(scorer.loaded_model, BatchConfig(budget)).score_ids(sequences).outputs
    with torch.inference_mode():
        expected = [float(model(torch.tensor([ids])).logits[0, 0]) for ids in sequences]
    assert list(outputs) == pytest.approx(expected, abs=1e-4)


def test_decoder_without_classifier_in_transformers_is_served(tmp_path: Path) -> None:
    model = build_decoder(tmp_path, "granite", AutoModel)
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    row = torch.randn(1, 64)
    save_file(weights | {"score.weight": row}, tmp_path / "model.safetensors", {"format": "pt"})
    edit_config(tmp_path, architectures=["GraniteForSequenceClassification"])
    scorer = RewardScorer.load(ModelConfig(str(tmp_path), device="cpu"))
    for messages, result in zip(CONVERSATIONS, scorer.score(CONVERSATIONS), strict=True):
        ids = torch.tensor([scorer.encoder.encode(messages).input_ids])
        with torch.inference_mode():
            expected = float(model(ids).last_hidden_state[0, -1] @ row[0])
        assert isinstance(result, Reward)
        assert result.reward == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gpt_oss", "GptOssAttention of transformers has attention sinks"),
        ("diffllama", "has 4 layers, of which 8 attend through the attention interface"),
        ("falcon", "FalconModel of transformers is not a decoder with a list of layers"),
    ],
)
@pytest.mark.parametrize("self_check", [True, False])
def test_architecture_that_packed_rows_cannot_follow_is_refused(
    name: str, says: str, self_check: bool, tmp_path: Path
) -> None:
    build_decoder(tmp_path, name)
    assert says in refusal(tmp_path, self_check=self_check)


@pytest.mark.parametrize("name", ["qwen2", "olmo2"])
def test_probe_is_equal_on_several_devices(name: str, tmp_path: Path) -> None:
    model = build_decoder(tmp_path, name).base_model
    install_packed_attention(model)
    cpu = torch.device("cpu")
    one = probe_decoder(model, (cpu,))
    assert one == probe_decoder(model, (cpu, cpu))
    assert (one.readout_layer_fault is None) == (name == "qwen2")
    assert (one.heads.num_heads, one.heads.num_key_value_heads, one.heads.head_dim) == (4, 2, 16)
    assert [params.scaling for params in one.params] == [0.25] * 4
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_window_that_differs_from_the_config_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than every conversation of the self-check, which could not notice it."""
    build_decoder(tmp_path, "qwen2")
    assert RewardScorer.load(ModelConfig(str(tmp_path), device="cpu"))
    from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

    initialize = Qwen2Attention.__init__

    def with_window(self: Any, *args: Any, **options: Any) -> None:
        initialize(self, *args, **options)
        self.sliding_window = 4096

    monkeypatch.setattr(Qwen2Attention, "__init__", with_window)
    detail = refusal(tmp_path)
    assert "layer 0 attends within a window of 4096 tokens, and the config declares None" in detail
