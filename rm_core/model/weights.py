"""Weights into transformers' classifier, and a refusal of any that could not be trusted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rm_core.errors import ModelLoadError
from rm_core.model.checkpoint import Checkpoint
from rm_core.model.quantization import silence_torchao

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tensors that a checkpoint may hold beside the classifier's own without changing its rewards.
_HARMLESS_EXTRAS = ("lm_head.", "rotary_emb.inv_freq")


def read_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The sequence classifier of a checkpoint, on the CPU, every weight accounted for.

    Args:
        checkpoint: the folder.
        dtype: of all weights.

    Raises:
        ModelLoadError: they are not those of the config, or not finite.
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
                attn_implementation="eager",  # until the packed one is installed
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # the report names them, and they are refused below
                output_loading_info=True,
            )
    # transformers raises many classes here; whichever it is, the model cannot be served.
    except Exception as error:
        raise ModelLoadError(
            f"{checkpoint.path} cannot be loaded: {summarize_error(error)}"
        ) from error
    _check_report(checkpoint.path, report)
    assert not isinstance(model, tuple)
    _check_finite(model, checkpoint.path)
    return model  # type: ignore[no-any-return]


def _check_shapes(checkpoint: Checkpoint) -> None:
    """Compare the files' headers with the config, before memory is taken for what it declares."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    try:
        with silence_transformers(), torch.device("meta"):
            config = AutoConfig.from_pretrained(checkpoint.path, num_labels=1)
            model = AutoModelForSequenceClassification.from_config(config)
    except Exception as error:
        raise ModelLoadError(
            f"{checkpoint.path / 'config.json'} describes no model that transformers can build: "
            f"{summarize_error(error)}; correct it, or download the file again"
        ) from error
    # Some checkpoints leave out the name of the decoder.
    prefix = f"{model.base_model_prefix}."
    found = {name.removeprefix(prefix): list(shape) for name, shape in checkpoint.shapes.items()}
    declared = {name.removeprefix(prefix): list(p.shape) for name, p in model.named_parameters()}
    _check_report(
        checkpoint.path,
        {
            "missing_keys": [_get_full_name(model, name) for name in declared if name not in found],
            "mismatched_keys": [
                f"{_get_full_name(model, name)} {found[name]} instead of {shape}"
                for name, shape in declared.items()
                if name in found and found[name] != shape
            ],
            "unexpected_keys": [],
        },
    )


def _get_full_name(model: PreTrainedModel, name: str) -> str:
    head = name.partition(".")[0]
    return name if hasattr(model, head) else f"{model.base_model_prefix}.{name}"


def _check_report(path: Path, report: Mapping[str, Any]) -> None:
    found = {
        "are missing and would be random": sorted(report["missing_keys"]),
        "have another shape than the config says": sorted(map(str, report["mismatched_keys"])),
        "could not be converted": sorted(map(str, report.get("error_msgs", ()))),
        "belong to no part of the model": sorted(
            key
            for key in report["unexpected_keys"]
            if not any(extra in key for extra in _HARMLESS_EXTRAS)
        ),
    }
    for what, keys in found.items():
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ModelLoadError(
                f"weights of {path} {what}: {', '.join(keys[:3])}{more}; config.json and the "
                "weights do not belong together"
            )


def _check_finite(model: PreTrainedModel, path: Path) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelLoadError(
                f"{name} of {path} holds NaN or infinity (as {tensor.dtype}); the checkpoint is "
                "damaged, or its dtype is too narrow for it"
            )


@contextlib.contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence transformers' warnings, loading report and progress bar.

    What it reports is checked in this package, and refused.
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
    """Class and first line of an error, for a message of our own."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    # Validators name the field in the first line and what is wrong with it in the second.
    text = " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else "no reason given"
    return f"{type(error).__name__}: {text}"
