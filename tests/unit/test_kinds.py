"""What a checkpoint is served as: settings, catalog and config.json, in this order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from rm_core import ModelConfig, ModelLoadError
from rm_core.kinds import choose_kind


@dataclass(frozen=True)
class Entry:
    kind: str
    step_format: str | None = None


def choose(architecture: str, entry: Entry | None = None, **settings: Any) -> tuple[str, Any]:
    config = ModelConfig("folder", **settings)
    choice = choose_kind(config, {"architectures": [architecture]}, entry)
    assert choice.reason
    return choice.kind, choice.step_format


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("Qwen3ForSequenceClassification", ("classifier", None)),
        ("INFORMForSequenceClassification", ("classifier", None)),
        ("Qwen2ForRewardModel", ("classifier", None)),
        ("Qwen2ForPrmModel", ("step", "skywork")),
        ("Qwen2ForProcessRewardModel", ("step", "qwen-math")),
        ("LlamaForCausalLM", ("classifier", None)),
    ],
)
def test_architecture_decides_without_setting(architecture: str, expected: tuple[str, Any]) -> None:
    assert choose(architecture) == expected


def test_catalog_precedes_architecture_and_setting_precedes_catalog() -> None:
    critic, prm = Entry("judge"), Entry("step", "math-shepherd")
    assert choose("LlamaForCausalLM", critic) == ("judge", None)
    assert choose("LlamaForCausalLM", critic, kind="classifier") == ("classifier", None)
    assert choose("MistralForCausalLM", prm) == ("step", "math-shepherd")
    assert choose("MistralForCausalLM", prm, step_format="rlhflow") == ("step", "rlhflow")
    assert choose("MistralForCausalLM", step_format="rlhflow") == ("step", "rlhflow")
    assert choose("Qwen2ForPrmModel", kind="step") == ("step", "skywork")


@pytest.mark.parametrize(
    ("architecture", "settings", "words"),
    [
        ("LlamaModel", {}, ("LlamaModel", "setting `kind`")),
        ("LlamaForCausalLM", {"kind": "step"}, ("setting `step_format`", "math-shepherd")),
    ],
)
def test_unknown_kind_is_refused(
    architecture: str, settings: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        choose(architecture, **settings)
    assert all(word in caught.value.detail for word in words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "reward"}, "allowed: auto, classifier, step, judge"),
        ({"step_format": "lines"}, "allowed: auto, skywork"),
        ({"kind": "judge", "step_format": "skywork"}, "only a step model has steps"),
        ({"label": 0, "label_weights": (1.0,)}, "label and label_weights are set"),
        ({"label": 0, "kind": "judge"}, "only a classifier"),
        ({"label": -1}, "from 0"),
        ({"label_weights": (0.0, 0.0)}, "not all 0"),
        ({"label_weights": (float("nan"),)}, "finite"),
        ({"lm_head_tokens": ()}, "one token, or of two"),
        ({"lm_head_tokens": (1, 1)}, "one token, or of two"),
        ({"lm_head_tokens": (1, 2, 3)}, "one token, or of two"),
        ({"lm_head_tokens": (-1,)}, "one token, or of two"),
        ({"verdict_labels": ("A", "A")}, "two different texts"),
    ],
)
def test_contradicting_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        ModelConfig("folder", **settings)
    assert words in caught.value.detail
