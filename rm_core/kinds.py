"""Chooses the kind of a reward model, from its settings, the catalog and config.json.

The kind decides what the model reads and where: a `classifier` is read at the last token of a
conversation, a `step` model at the marker after every step, and a `judge` at the first token of its
verdict on two answers. The choice needs no weights, since processes that only tokenize make it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rm_core.config import Kind, ModelConfig, StepFormat
from rm_core.errors import ModelLoadError

# Architectures whose authors' code defines them; the checkpoints are published with that code.
_KNOWN: Mapping[str, tuple[Kind, StepFormat | None]] = {
    "Qwen2ForPrmModel": ("step", "skywork"),
    "Qwen2ForProcessRewardModel": ("step", "qwen-math"),
    "Qwen2ForRewardModel": ("classifier", None),
}
VISION_LANGUAGE: Mapping[str, str] = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
"""Architecture of each `model_type` of vision-language models; they are served as classifiers."""
# Tokens that the authors' code appends after the chat template, and at which it reads the reward.
_APPENDED: Mapping[str, str] = {
    "AtheneForSequenceClassification": "<|reserved_special_token_1|>",
}


@dataclass(frozen=True, slots=True)
class KindChoice:
    """What a checkpoint is served as."""

    kind: Kind  # `classifier`, `step` or `judge`
    # How a solution is divided into steps and marked; None unless `kind` is `step`.
    step_format: StepFormat | None
    reason: str  # why this kind was chosen, in words
    # Token that follows every conversation, and at which it is read; None for the last token of the
    # conversation itself.
    appended_token: str | None = None


def choose_kind(
    config: ModelConfig, model_config: Mapping[str, Any], entry: object | None
) -> KindChoice:
    """Choose what a checkpoint is served as, by settings, its catalog entry and its config.json."""
    architecture = str((model_config.get("architectures") or ["none"])[0])[:80]
    known, known_format, reason = _look_up(architecture, entry)
    kind: Kind | None = known
    if config.kind != "auto":
        kind, reason = config.kind, "the setting `kind`"
    elif config.step_format != "auto":
        kind, reason = "step", "the setting `step_format`"
    if kind is None:
        raise ModelLoadError(
            f"architecture {architecture} of {config.name} does not tell how the model is read; "
            "give the setting `kind`: `classifier` for one reward at the last token, `step` for a "
            "process reward model, `judge` for a generative judge"
        )
    if kind not in (None, "classifier") and architecture in VISION_LANGUAGE.values():
        raise ModelLoadError(
            f"{config.name} is a vision-language model ({architecture}), which is served as a "
            f"classifier with a value head, and {reason} says {kind}; leave the setting out"
        )
    if kind == "classifier":
        appended = config.appended_token or _APPENDED.get(architecture)
        return KindChoice(kind, None, reason, appended)
    if kind != "step":
        return KindChoice(kind, None, reason)
    step_format = known_format if config.step_format == "auto" else config.step_format
    if step_format is None:
        raise ModelLoadError(
            f"{config.name} is served as a step model ({reason}), and neither the catalogue nor "
            f"its architecture {architecture} tells how solutions are divided into steps; give the "
            "setting `step_format`: skywork, qwen-math, math-shepherd or rlhflow"
        )
    return KindChoice("step", step_format, reason)


def _look_up(architecture: str, entry: object | None) -> tuple[Kind | None, StepFormat | None, str]:
    """Return kind and step format without the settings, and the reason for the kind."""
    kind: Kind | None = getattr(entry, "kind", None)
    if kind is not None:
        return kind, getattr(entry, "step_format", None), "the catalogue"
    if architecture in _KNOWN:
        return *_KNOWN[architecture], f"architecture {architecture}"
    if (
        architecture.endswith("ForSequenceClassification")
        or architecture in VISION_LANGUAGE.values()
    ):
        return "classifier", None, f"architecture {architecture}"
    if architecture.endswith("ForCausalLM"):
        return "classifier", None, f"architecture {architecture} without the setting `kind`"
    return None, None, ""
