"""Loads weights into transformers' classifier, and refuses weights that cannot be trusted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rm_core.errors import ModelLoadError
from rm_core.model.checkpoint import Checkpoint
from rm_core.model.quantization import silence_torchao
from rm_core.text import format_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tensors that a checkpoint may have in addition to the classifier's, without effect on rewards.
_HARMLESS_EXTRAS = ("lm_head.", "rotary_emb.inv_freq")


def read_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """Load the sequence classifier of a checkpoint on the CPU; every weight is accounted for.

    Args:
        checkpoint: the opened checkpoint.
        dtype: dtype of the loaded weights.

    Raises:
        ModelLoadError: the weights do not match the config, or are not finite.
    """
    silence_torchao()
    from transformers import AutoModelForSequenceClassification

    _check_shapes(checkpoint)
    try:
        with silence_transformers():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                checkpoint.path,
                dtype=dtype,
                num_labels=1,
                attn_implementation="eager",  # until the packed attention is installed
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # listed in the report, and refused below
                output_loading_info=True,
            )
    # transformers raises many classes here; all mean that the model cannot be served.
    except Exception as error:
        raise ModelLoadError(
            f"{checkpoint.path} cannot be loaded: {summarize_error(error)}"
        ) from error
    _check_report(checkpoint.path, report)
    assert not isinstance(model, tuple)
    _check_finite(model, checkpoint.path)
    return model  # type: ignore[no-any-return]


def _check_shapes(checkpoint: Checkpoint) -> None:
    """Compare the files' headers with the config before the declared memory is allocated."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    try:
        with silence_transformers(), torch.device("meta"):
            config = AutoConfig.from_pretrained(checkpoint.path, num_labels=1)
            model = AutoModelForSequenceClassification.from_config(config)
    except Exception as error:
        raise ModelLoadError(
            f"transformers cannot build the model that {checkpoint.path / 'config.json'} "
            f"describes: {summarize_error(error)}; correct the file, or download it again"
        ) from error
    # Some checkpoints omit the name of the decoder.
    prefix = f"{model.base_model_prefix}."
    stored = {name.removeprefix(prefix): list(shape) for name, shape in checkpoint.shapes.items()}
    declared = {name.removeprefix(prefix): list(p.shape) for name, p in model.named_parameters()}
    _check_report(
        checkpoint.path,
        {
            "missing_keys": [
                _get_full_name(model, name) for name in declared if name not in stored
            ],
            "mismatched_keys": [
                f"{_get_full_name(model, name)} {stored[name]} instead of {shape}"
                for name, shape in declared.items()
                if name in stored and stored[name] != shape
            ],
            "unexpected_keys": [],
        },
    )


def _get_full_name(model: PreTrainedModel, name: str) -> str:
    head = name.partition(".")[0]
    return name if hasattr(model, head) else f"{model.base_model_prefix}.{name}"


def _check_report(path: Path, report: Mapping[str, Any]) -> None:
    problems = {
        "are missing and would be random": sorted(report["missing_keys"]),
        "have a different shape than in the config": sorted(map(str, report["mismatched_keys"])),
        "could not be converted": sorted(map(str, report.get("error_msgs", ()))),
        "do not belong to any module of the model": sorted(
            key
            for key in report["unexpected_keys"]
            if not any(extra in key for extra in _HARMLESS_EXTRAS)
        ),
    }
    for problem, keys in problems.items():
        if keys:
            raise ModelLoadError(
                f"weights of {path} {problem}: {format_names(keys, 3)}; config.json and the "
                "weights do not match"
            )


def _check_finite(model: PreTrainedModel, path: Path) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelLoadError(
                f"{name} of {path} contains NaN or infinity (in {tensor.dtype}); the checkpoint is "
                "damaged, or the range of the dtype is too small for it"
            )


@contextlib.contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence transformers' warnings, loading report and progress bar.

    This package checks the contents of the report itself and refuses the model if necessary.
    """
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def summarize_error(error: BaseException) -> str:
    """Return the class and first line of an error, to quote in a message."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    # Validators name the field in the first line and the problem in the second.
    text = " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else "no reason given"
    return f"{type(error).__name__}: {text}"
