"""Finds a checkpoint's head among the names and shapes of its tensors. No torch.

A head that is not where the architecture has it is refused: transformers would create a random one
in its place and only report it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rm_core.config import ModelConfig
from rm_core.errors import ModelLoadError
from rm_core.kinds import VISION_LANGUAGE, KindChoice
from rm_core.text import format_names

Shapes: TypeAlias = Mapping[str, Sequence[int]]
LayoutName: TypeAlias = Literal["score", "score MLP", "v_head.summary", "v_head", "lm_head"]

SCORE = "score.weight"
LM_HEAD = "lm_head.weight"
# Weight of the layer whose rows are the labels, in the order of preference.
_WEIGHTS: Mapping[LayoutName, str] = {
    "score": SCORE,
    "score MLP": "score.2.weight",
    "v_head.summary": "v_head.summary.weight",
    "v_head": "v_head.weight",
}
_INNER = "score.0.weight"
# Layouts of architectures; any other may have any of `_WEIGHTS`.
_EXPECTED: Mapping[str, tuple[LayoutName, ...]] = {
    "Qwen2ForPrmModel": ("v_head.summary",),
    "Qwen2ForProcessRewardModel": ("score MLP",),
    "Qwen2ForRewardModel": ("score MLP",),
    "INFORMForSequenceClassification": ("score MLP",),
    "AtheneForSequenceClassification": ("v_head",),
    **dict.fromkeys(VISION_LANGUAGE.values(), ("v_head.summary",)),
}
# Step models whose judgement of a step is the next token, `+` or `-`.
_SIGN_FORMATS = ("math-shepherd", "rlhflow")
# Keys of config.json that change logits in ways that the heads do not follow.
_LOGIT_KEYS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "logits_scale")


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Where a checkpoint has its head."""

    name: LayoutName  # which tensors the head has
    factors: tuple[float, ...]  # factor of each label in the output; empty for `lm_head`
    # Names of the head's tensors in the checkpoint; for `lm_head` only if the rows are not those of
    # the token embedding.
    tensors: tuple[str, ...]
    description: str  # what the head is, for people
    # Of `lm_head`, the tokens whose logits are read; empty for those that the encoder of the
    # checkpoint's kind finds (`Encoder.label_ids`).
    tokens: tuple[int, ...] = ()


def choose_layout(
    path: Path,
    shapes: Shapes,
    kind: KindChoice,
    config: ModelConfig,
    model_config: Mapping[str, Any],
) -> HeadLayout:
    """Find the head of a checkpoint by the shapes of its tensors.

    Of `config`, `label`, `label_weights` and `lm_head_tokens` are read.

    Raises:
        ModelLoadError: the head is missing, ambiguous, or of the wrong shape.
    """
    if (
        config.lm_head_tokens is not None
        or kind.kind == "judge"
        or kind.step_format in _SIGN_FORMATS
    ):
        return _choose_lm_head(path, shapes, kind, config, model_config)
    architecture = str((model_config.get("architectures") or ["none"])[0])
    has_plain_head = architecture.endswith("ForSequenceClassification")
    expected = _EXPECTED.get(architecture, ("score",) if has_plain_head else tuple(_WEIGHTS))
    found = [name for name, weight in _WEIGHTS.items() if weight in shapes]
    usable = [name for name in found if name in expected]
    if len(usable) != 1:
        raise ModelLoadError(
            _explain_missing_head(path, shapes, kind, architecture, expected, found, usable)
        )
    name = usable[0]
    weight = _WEIGHTS[name]
    bias = weight.removesuffix("weight") + "bias"
    tensors = [weight]
    # transformers' classifiers, Athene and InternLM2 have no bias.
    if bias in shapes and not (name == "v_head" or (name == "score" and has_plain_head)):
        tensors.append(bias)
    if name == "score MLP":
        tensors += [n for n in (_INNER, _INNER.replace("weight", "bias")) if n in shapes]
        if _INNER not in shapes:
            raise ModelLoadError(f"{path} has {weight} without {_INNER}; download it again")
    factors, label = _choose_factors(path, weight, shapes[weight], kind, config)
    if name == "score" and has_plain_head:
        _check_declared_labels(path, model_config, len(factors))
    return HeadLayout(name, factors, tuple(tensors), f"{name}{label}")


def _choose_factors(
    path: Path, weight: str, shape: Sequence[int], kind: KindChoice, config: ModelConfig
) -> tuple[tuple[float, ...], str]:
    """Return the factor of each label, and words for the choice."""
    num_labels = shape[0] if len(shape) == 2 else 0
    if num_labels == 1 and config.label in (None, 0) and config.label_weights is None:
        return (1.0,), ""
    if num_labels == 2 and kind.kind == "step":
        return (-1.0, 1.0), ", label 1 minus label 0"
    if num_labels >= 1 and config.label is not None:
        if config.label >= num_labels:
            raise ModelLoadError(
                f"label is {config.label}, but {weight} of {path} has {num_labels} labels, from 0; "
                "choose one of them"
            )
        factors = tuple(float(index == config.label) for index in range(num_labels))
        return factors, f", label {config.label} of {num_labels}"
    if num_labels >= 1 and config.label_weights is not None:
        if len(config.label_weights) != num_labels:
            raise ModelLoadError(
                f"label_weights has {len(config.label_weights)} numbers, but {weight} of {path} "
                f"has {num_labels} labels; give one number for each label"
            )
        numbers = ",".join(f"{value:g}" for value in config.label_weights)
        return config.label_weights, f", labels weighted {numbers}"
    advice = (
        "; choose one label with the setting `label`, or combine them with `label_weights`"
        if num_labels > 1 and kind.kind == "classifier"
        else ""
    )
    if num_labels == 2 and kind.kind == "classifier":
        advice += ", or give the setting `kind` (`step`) if it is a process reward model"
    raise ModelLoadError(
        f"{weight} of {path} has shape {list(shape)}; a reward model has [1, hidden_size]{advice}"
    )


def needs_reward_head(
    kind: KindChoice, config: ModelConfig, model_config: Mapping[str, Any]
) -> bool:
    """Return whether a language model is read by a head that a plain one does not have."""
    architecture = str((model_config.get("architectures") or ["none"])[0])
    is_language_model = (
        architecture.endswith("ForCausalLM") or architecture in VISION_LANGUAGE.values()
    )
    return is_language_model and kind.kind == "classifier" and config.lm_head_tokens is None


def check_head_names(
    path: Path, names: Collection[str], kind: KindChoice, model_config: Mapping[str, Any]
) -> None:
    """Refuse a checkpoint without any head for rewards, by the names of its tensors alone."""
    if not any(weight in names for weight in _WEIGHTS.values()):
        architecture = str((model_config.get("architectures") or ["none"])[0])
        shapes: Shapes = dict.fromkeys(names, ())
        raise ModelLoadError(
            _explain_missing_head(path, shapes, kind, architecture, tuple(_WEIGHTS), (), ())
        )


def check_labels(
    path: Path, kind: KindChoice, config: ModelConfig, model_config: Mapping[str, Any]
) -> None:
    """Refuse a classifier that declares several labels, if none is chosen; without its weights."""
    architecture = str((model_config.get("architectures") or ["none"])[0])
    chosen = (config.label, config.label_weights, config.lm_head_tokens)
    if kind.kind == "classifier" and architecture.endswith("ForSequenceClassification"):
        declared = _count_declared_labels(model_config, 1)
        if declared != 1 and all(setting is None for setting in chosen):
            raise ModelLoadError(
                f"{path / 'config.json'} declares {declared} labels; a reward model has exactly "
                "one: choose one with the setting `label`, or combine them with `label_weights`"
            )


def _count_declared_labels(model_config: Mapping[str, Any], default: int) -> int:
    declared = model_config.get("num_labels")
    return len(model_config.get("id2label") or [None] * default) if declared is None else declared


def _check_declared_labels(path: Path, model_config: Mapping[str, Any], num_labels: int) -> None:
    declared = _count_declared_labels(model_config, num_labels)
    if declared != num_labels:
        raise ModelLoadError(
            f"{path / 'config.json'} declares {declared} labels, but {SCORE} has exactly one row "
            f"for each of {num_labels}; correct one of the two"
        )


def _choose_lm_head(
    path: Path,
    shapes: Shapes,
    kind: KindChoice,
    config: ModelConfig,
    model_config: Mapping[str, Any],
) -> HeadLayout:
    for key in _LOGIT_KEYS:
        if model_config.get(key) not in (None, 1, 1.0):
            raise ModelLoadError(
                f"{path / 'config.json'} has {key}, which scales the logits; the head reads "
                "unscaled logits, so such models cannot be served by tokens of their lm_head"
            )
    if others := [weight for weight in _WEIGHTS.values() if weight in shapes]:
        cause = f"{kind.reason} ({kind.kind})"
        if config.lm_head_tokens is not None:
            cause = "the setting `lm_head_tokens`"
        elif config.step_format != "auto":
            cause = f"the setting `step_format` ({kind.step_format})"
        raise ModelLoadError(
            f"{path} has the reward head {format_names(others, 3)}, but {cause} reads the language "
            "model's head instead; is it a classifier, or a step model with another `step_format` "
            "(skywork or qwen-math)? Correct the setting, or leave it out"
        )
    tensors = tuple(name for name in (LM_HEAD, "lm_head.bias") if name in shapes)
    if config.lm_head_tokens is not None:
        names = " minus ".join(map(str, config.lm_head_tokens))
        words = f"lm_head, logit of token {names}"
        return HeadLayout("lm_head", (), tensors, words, tuple(config.lm_head_tokens))
    if kind.kind == "judge":
        first, second = config.verdict_labels
        words = f"lm_head, log-odds of {first!r} against {second!r} after {config.verdict_prefix!r}"
        return HeadLayout("lm_head", (), tensors, words)
    return HeadLayout("lm_head", (), tensors, "lm_head, logit of '+' minus that of '-'")


def _explain_missing_head(
    path: Path,
    shapes: Shapes,
    kind: KindChoice,
    architecture: str,
    expected: Sequence[LayoutName],
    found: Sequence[LayoutName],
    usable: Sequence[LayoutName],
) -> str:
    if len(usable) > 1:
        return (
            f"{path} has several heads, {' and '.join(_WEIGHTS[name] for name in usable)}, so the "
            "intended one is ambiguous; remove the tensors of the others"
        )
    weights = " or ".join(_WEIGHTS[name] for name in expected)
    if found:
        return (
            f"{path} has no {weights}, the head of {architecture[:80]}, but "
            f"{' and '.join(_WEIGHTS[name] for name in found)}; a head of another architecture "
            "would give wrong rewards: correct `architectures` in config.json, or give the "
            "original checkpoint"
        )
    return f"{path} has no {weights}: {_find_renamed_head(shapes, kind, expected, architecture)}"


def _find_renamed_head(
    shapes: Shapes, kind: KindChoice, expected: Sequence[LayoutName], architecture: str
) -> str:
    names = [_WEIGHTS[name] for name in expected]
    other = next(
        ((name, head) for name in sorted(shapes) for head in names if name.endswith(f".{head}")),
        None,
    )
    if other is not None:
        prefix = other[0].removesuffix(other[1])
        wrapper = {
            "_orig_mod.": "; a model compiled by torch.compile was saved: save its `_orig_mod`",
            "module.": "; a model wrapped for data parallelism was saved: save its `module`",
        }.get(prefix, "")
        return (
            f"the head has another name, {other[0][:120]}{wrapper}. Remove {prefix[:80]!r} from "
            "the start of every name, or save the model itself with save_pretrained"
        )
    advice = ""
    if architecture.endswith("ForCausalLM"):
        advice = (
            ". If it is a generative judge or a process reward model, give the setting `kind` "
            "(`judge` or `step`); if its reward is the logit of a token, give `lm_head_tokens`"
            if kind.step_format is None
            else f". The setting `step_format` ({kind.step_format}) reads a head at every step; if "
            "the model answers `+` or `-`, give math-shepherd or rlhflow"
        )
    if architecture in VISION_LANGUAGE.values():
        advice = (
            ". A plain vision-language model has no such head; LLaMA-Factory writes that of a "
            "reward model to value_head.safetensors next to the weights: is that file missing?"
        )
    return (
        "the reward head is missing, and a newly initialized head would give random rewards. Is "
        f"this the base model, or an adapter? Give the full reward model{advice}"
    )
