"""Every load compares the engine with plain transformers, and refuses a model if they differ."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SPECS, build_checkpoint, edit_config, edit_weights, replace
from reference import Reference

import rm_core.model.loading
from rm_core import ModelConfig, ModelLoadError, RewardScorer
from rm_core.inputs.chat_template import ChatTemplate
from rm_core.model.self_check import (
    CONVERSATIONS,
    build_self_check,
    compute_plain_outputs,
    encode_samples,
)
from rm_core.model.weights import read_weights
from rm_core.types import Encoded

PathOf = Callable[[str], Path]

CPU = torch.device("cpu")
FAMILIES = ["llama-v0.2", "qwen3", "gemma2"]


def modeling(name: str) -> Any:
    family = SPECS[name].family
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


def load(folder: Path, **settings: Any) -> RewardScorer:
    return RewardScorer.load(ModelConfig(str(folder), device="cpu", **settings))


def numbers_in_refusal(folder: Path, **settings: Any) -> tuple[float, float]:
    """Return the rewards of plain transformers and of the engine from the error of a load."""
    with pytest.raises(ModelLoadError, match=r"the self-check of .* failed") as caught:
        load(folder, **settings)
    found = re.search(
        r"gives a built-in conversation the reward (\S+), the engine gives (\S+) ",
        caught.value.detail,
    )
    assert found, caught.value.detail
    return float(found[1]), float(found[2])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attention": "eager"},
        {"dtype": "bfloat16"},
        {"deterministic": True},
        {"quantization": "int8-weights"},
        {"quantization": "int8"},
        {"dtype": "bfloat16", "quantization": "int8-weights"},
        {"max_length": 7},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", FAMILIES)
def test_self_check_passes_in_every_mode(
    name: str, settings: dict[str, Any], checkpoint_of: PathOf
) -> None:
    scorer = load(checkpoint_of(name), **settings)
    check = scorer.loaded_model.self_check
    assert check is not None
    assert scorer.describe().self_check is True
    assert len(check.sequences) == len(check.outputs) >= (1 if "max_length" in settings else 10)
    assert all(allowed > 0 for (allowed,) in check.tolerances)


@pytest.mark.parametrize("name", SPECS)
def test_self_check_has_the_rewards_of_plain_transformers(name: str, checkpoint_of: PathOf) -> None:
    folder = checkpoint_of(name)
    check = load(folder).loaded_model.self_check
    assert check is not None
    reference = Reference(folder)
    expected = [reference.reward(messages) for messages in CONVERSATIONS]
    rewards = [reward for (reward,) in check.outputs]
    tolerances = [allowed for (allowed,) in check.tolerances]
    assert rewards[:3] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 100 * max(tolerances)
    assert min(tolerances) >= 1e-4
    assert max(tolerances) < 5e-4
    # A prefix is scored as if its tokens were the whole conversation.
    for ids, reward in zip(check.sequences[3:], rewards[3:], strict=True):
        with torch.inference_mode():
            alone = reference.model(input_ids=torch.tensor([ids])).logits[0, 0]
        assert reward == pytest.approx(float(alone), abs=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_self_check_refuses_a_bidirectional_mask(
    name: str, dtype: str, checkpoint_of: PathOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain transformers sees `is_causal: false`, which the check of config keys would refuse."""

    def read(*args: Any) -> Any:
        model = read_weights(*args)
        model.config.is_causal = False
        return model

    monkeypatch.setattr(rm_core.model.loading, "read_weights", read)
    with pytest.raises(ModelLoadError, match="has no causal mask"):
        load(checkpoint_of(name), dtype=dtype)


def obey_made_up_switch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make plain transformers obey a config key that hides distant tokens from each token."""
    module = modeling(name)

    def obeying(create: Callable[..., Any]) -> Callable[..., Any]:
        def create_mask(*, config: Any, **kwargs: Any) -> Any:
            mask = create(config=config, **kwargs)
            if mask is None or not getattr(config, "forgetful", False):
                return mask
            size = mask.shape[-1]
            distance = torch.arange(size)[:, None] - torch.arange(size)
            return mask.masked_fill(distance >= 8, torch.finfo(mask.dtype).min)

        return create_mask

    for function in ("create_causal_mask", "create_sliding_window_causal_mask"):
        if hasattr(module, function):
            monkeypatch.setattr(module, function, obeying(getattr(module, function)))


@pytest.mark.parametrize(
    "settings",
    [{}, {"dtype": "bfloat16"}, {"quantization": "int8"}, {"quantization": "int8-weights"}],
    ids=str,
)
@pytest.mark.parametrize("name", FAMILIES)
def test_self_check_refuses_a_mask_switch_that_the_engine_does_not_know(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obey_made_up_switch(name, monkeypatch)
    folder = build_checkpoint(tmp_path, SPECS[name])
    assert load(folder, **settings).loaded_model.self_check is not None
    edit_config(folder, forgetful=True)
    plain, ours = numbers_in_refusal(folder, **settings)
    assert abs(plain - ours) > 1e-3
    assert load(folder, **settings, self_check=False).describe().self_check is False


@pytest.mark.parametrize("name", FAMILIES)
def test_last_layer_with_unknown_rotary_embeddings_runs_on_all_tokens(
    name: str, checkpoint_of: PathOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adjacent dimensions are rotated together, as in GPT-J, instead of halves."""
    folder = checkpoint_of(name)
    assert load(folder).describe().readout_layer == "readout tokens only"

    def rotate_pairs(tensor: torch.Tensor) -> torch.Tensor:
        even, odd = tensor[..., ::2], tensor[..., 1::2]
        return torch.stack((-odd, even), dim=-1).flatten(-2)

    monkeypatch.setattr(modeling(name), "rotate_half", rotate_pairs)
    scorer = load(folder)
    assert scorer.describe().readout_layer == "all tokens: the layer computes its keys differently"
    (result,) = scorer.score(CONVERSATIONS[:1])
    expected = Reference(folder).reward(CONVERSATIONS[0])
    assert result.reward == pytest.approx(expected, abs=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", FAMILIES)
def test_self_check_refuses_a_rotary_setting_that_depends_on_the_length(
    name: str, checkpoint_of: PathOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions are scaled by the length of the row, which differs if rows are packed."""
    names = {"llama": "LlamaRotaryEmbedding", "qwen3": "Qwen3RotaryEmbedding"}
    rotary = getattr(modeling(name), names.get(SPECS[name].family, "Gemma2RotaryEmbedding"))
    forward = rotary.forward

    def stretched(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return forward(self, x, position_ids * (1 + position_ids.shape[1] / 64))

    monkeypatch.setattr(rotary, "forward", stretched)
    # The precision check measures the last position alone, and would refuse this model first.
    monkeypatch.setattr("rm_core.model.loading.check_precision", lambda *_: None)
    plain, ours = numbers_in_refusal(checkpoint_of(name))
    assert abs(plain - ours) > 1e-3


def test_self_check_refuses_wrong_positions_of_shared_segments(
    checkpoint_of: PathOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "rm_core.model.forward._build_positions",
        lambda tree, _: torch.cat(
            [torch.arange(len(segment.token_ids)) for segment in tree.row_segments]
        ).unsqueeze(0),
    )
    numbers_in_refusal(checkpoint_of("qwen3"))


@pytest.mark.parametrize("name", FAMILIES)
def test_self_check_refuses_rendering_that_differs_from_transformers(
    name: str, checkpoint_of: PathOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulates an update of transformers after which the engine renders differently."""
    render = ChatTemplate.render

    def spaced(self: ChatTemplate, *args: Any, **options: Any) -> str:
        return render(self, *args, **options) + " "

    monkeypatch.setattr(ChatTemplate, "render", spaced)
    with pytest.raises(ModelLoadError, match="differ from those of transformers'"):
        load(checkpoint_of(name))
    assert load(checkpoint_of(name), self_check=False).describe().self_check is False


def test_self_check_is_disabled_by_its_setting(
    checkpoint_of: PathOf, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        scorer = load(checkpoint_of("qwen3"), self_check=False)
    assert scorer.describe().self_check is False
    assert "self-check is disabled" in caplog.text


def test_self_check_skips_conversations_without_a_finite_reward(tmp_path: Path) -> None:
    """The engine still returns an error for each such conversation."""
    folder = build_checkpoint(tmp_path, SPECS["qwen3"])
    edit_weights(folder, lambda weights: weights["score.weight"].fill_(3e38))
    scorer = load(folder)
    (result,) = scorer.score(CONVERSATIONS[:1])
    assert result.code == "non_finite_reward"  # type: ignore[union-attr]


def test_self_check_works_if_template_refuses_its_conversations(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, SPECS["qwen3"])
    template = tmp_path / "strict.jinja"
    refuses = "{{ raise_exception('not these turns') }}"
    text = "{% if messages[0].role != 'system' %}" + refuses + "{% endif %}{{ messages }}"
    template.write_text(text)
    check = load(folder, chat_template=str(template)).loaded_model.self_check
    assert check is not None
    assert len(set(check.sequences[:3])) == 3


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_error_is_measured_without_changing_weights(
    name: str, checkpoint_of: PathOf, tmp_path: Path
) -> None:
    """The float32 pass over bfloat16 weights equals a model with weights converted to float32."""
    folder = checkpoint_of(name)
    loaded = load(folder, dtype="bfloat16").loaded_model
    narrow = read_weights(loaded.checkpoint, torch.bfloat16).eval()
    before = {key: value.clone() for key, value in narrow.state_dict().items()}
    samples = encode_samples(loaded.encoder)
    check = build_self_check(narrow, loaded.head, (CPU,), samples)
    after = narrow.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    wide = read_weights(loaded.checkpoint, torch.bfloat16).float().eval()
    plain = compute_plain_outputs(narrow, loaded.head, (CPU,), samples[2:])
    exact = compute_plain_outputs(wide, loaded.head, (CPU,), samples[2:])
    error = float((plain[0] - exact[0]).abs().mean())
    assert error > 0
    largest = max(allowed for (allowed,) in check.tolerances)
    assert largest >= 6 * error * 0.999
    assert largest < 1  # far below the effect of a wrong mask


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FAMILIES)
def test_model_that_amplifies_rounding_is_not_refused(
    name: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewards spread over hundreds, so float32 rounds small rewards by more than 1e-4."""
    folder = build_checkpoint(tmp_path, replace(SPECS[name], seed=seed))
    edit_weights(folder, lambda weights: weights["score.weight"].mul_(300))
    scorer = load(folder)
    check = scorer.loaded_model.self_check
    assert check is not None
    model = read_weights(scorer.loaded_model.checkpoint, torch.float64).eval()
    samples = [Encoded("", ids, (len(ids) - 1,)) for ids in check.sequences]
    exact = compute_plain_outputs(model, scorer.loaded_model.head, (CPU,), samples)
    errors = [abs(float(a[-1]) - b) for a, (b,) in zip(exact, check.outputs, strict=True)]
    assert max(errors) > 1e-4  # of plain transformers itself
    assert max(allowed for (allowed,) in check.tolerances) < 0.1
    obey_made_up_switch(name, monkeypatch)
    edit_config(folder, forgetful=True)
    plain, ours = numbers_in_refusal(folder)
    assert abs(plain - ours) > 1


def test_self_check_is_equal_on_several_devices(checkpoint_of: PathOf) -> None:
    loaded = load(checkpoint_of("gemma2")).loaded_model
    samples = encode_samples(loaded.encoder)
    model = read_weights(loaded.checkpoint, torch.float32).eval()
    one = build_self_check(model, loaded.head, (CPU,), samples)
    two = build_self_check(model, loaded.head, (CPU, CPU), samples)
    assert one == two
    assert not any(layer._forward_pre_hooks for layer in model.modules())
