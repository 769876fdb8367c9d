"""From a checkpoint to a model that is safe to score with, or a refusal that says why not.

Every check happens here, before the first request. `load_encoder` is the half that a process
needs which only tokenizes; `load_model` is all of it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rm_core.attention import (
    AttentionChoice,
    Backend,
    Placement,
    choose_attention,
    install,
    make_backend,
)
from rm_core.chat import ChatEncoder
from rm_core.checkpoint import Checkpoint, open_checkpoint
from rm_core.config import ModelConfig
from rm_core.errors import ModelLoadError
from rm_core.placement import is_old_gpu, resolve_device, resolve_dtype
from rm_core.readout_layer import ReadoutLayer
from rm_core.types import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Tensors that a checkpoint may hold beside the classifier's own without changing its rewards.
_HARMLESS_EXTRAS = ("lm_head.", "rotary_emb.inv_freq")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checked model on its device, and how it got there.

    Attributes:
        model: transformers' sequence classifier, in eval mode, its layers attending through
            packed rows and the last one ready to run on readout tokens alone.
        head: `score.weight` as float32 `[1, hidden_size]`, on the model's device.
        pad_token_id: of the config; decides the readout.
        checkpoint: the folder and what is known of it.
        attention: the backend's name and why it was taken.
        backend: computes attention.
        deterministic: whether a reward must not depend on its batch, to the last bit.
        device: where it runs.
        fingerprint: what makes two rewards comparable.
        encoder: renders and tokenizes for it.
    """

    model: PreTrainedModel
    head: torch.Tensor
    pad_token_id: int | None
    checkpoint: Checkpoint
    attention: AttentionChoice
    backend: Backend
    deterministic: bool
    device: torch.device
    fingerprint: Fingerprint
    encoder: ChatEncoder


def load_encoder(config: ModelConfig, checkpoint: Checkpoint | None = None) -> ChatEncoder:
    """The tokenizing half of a checkpoint.

    Args:
        config: which checkpoint.
        checkpoint: the opened checkpoint, where the caller has it already.

    Raises:
        ModelLoadError: no such checkpoint, no chat template, or a limit that the model lacks.
    """
    checkpoint = checkpoint or open_checkpoint(config, weights=False)
    tokenizer = _load_tokenizer(checkpoint.path)
    if config.chat_template is not None:
        tokenizer.chat_template = _read_template(config.chat_template)
    if config.max_length is not None and config.max_length > checkpoint.max_positions:
        raise ModelLoadError(
            f"max_length is {config.max_length}, but the model has {checkpoint.max_positions} "
            "positions; lower it"
        )
    return ChatEncoder(
        tokenizer,
        pad_token_id=_pad_token_id(checkpoint.config),
        max_length=config.max_length or checkpoint.max_length,
        warn_on_system_prompt=bool(
            checkpoint.entry and checkpoint.entry.system_prompt_advised_against
        ),
    )


def load_model(config: ModelConfig) -> LoadedModel:
    """Load a reward model and refuse it if its rewards could not be trusted.

    Raises:
        ModelLoadError: with what was found and what to do.
    """
    checkpoint = open_checkpoint(config)
    encoder = load_encoder(config, checkpoint)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device, checkpoint.family)
    # Gemma-2 even if its config switches the softcap off: transformers has no SDPA for it at all.
    softcap = checkpoint.family == "gemma2" or bool(checkpoint.config.get("attn_logit_softcapping"))
    attention = choose_attention(
        Placement(
            family=checkpoint.family,
            device_type=device.type,
            dtype=_name(dtype),
            softcap=softcap,
            window=_has_window(checkpoint.config),
            deterministic=config.deterministic,
            old_gpu=is_old_gpu(device),
        ),
        config.attention,
    )
    model = _from_pretrained(checkpoint, dtype)
    _check_finite(model, checkpoint.path)
    try:
        model = model.to(device).eval()  # type: ignore[arg-type]
    except RuntimeError as error:  # out of memory, or a device that is out of order
        raise ModelLoadError(
            f"{config.name} as {_name(dtype)} cannot be put on {device}: {_first_line(error)}; use "
            "a device with more memory, or free this one"
        ) from error
    install(model)
    layers = model.get_submodule(f"{model.base_model_prefix}.layers")
    assert isinstance(layers, torch.nn.ModuleList)
    layers[-1] = ReadoutLayer(layers[-1])
    # Its weights in the decoder's dtype, as transformers has them; only the product is in float32.
    head = model.get_submodule("score").get_parameter("weight").detach().float()
    fingerprint = Fingerprint(
        revision=checkpoint.revision,
        template_sha256=encoder.template_sha256,
        dtype=_name(dtype),
        attention=attention.name,
    )
    if encoder.depends_on_date:
        logger.warning(
            "the chat template of %s writes today's date: its rewards change from day to day",
            config.name,
        )
    logger.info(
        "loaded %s: revision %s, %s on %s, attention %s (%s), limit %d tokens",
        config.name,
        checkpoint.revision,
        fingerprint.dtype,
        device,
        attention.name,
        attention.reason,
        encoder.max_length,
    )
    return LoadedModel(
        model=model,
        head=head,
        pad_token_id=_pad_token_id(checkpoint.config),
        checkpoint=checkpoint,
        attention=attention,
        backend=make_backend(attention.name, config.deterministic),
        deterministic=config.deterministic,
        device=device,
        fingerprint=fingerprint,
        encoder=encoder,
    )


def _pad_token_id(config: Mapping[str, Any]) -> int | None:
    pad = config.get("pad_token_id")
    return None if pad is None else int(pad)


def _has_window(config: Mapping[str, Any]) -> bool:
    """Whether any layer sees only so many positions; the families say it in different ways."""
    types = config.get("layer_types") or ()
    return bool(
        "sliding_attention" in types
        or config.get("use_sliding_window")
        or (config.get("model_type") == "gemma2" and config.get("sliding_window"))
    )


def _read_template(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"the chat template {path!r} cannot be read: {error}") from error


def _load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=False
        )
    # transformers raises many classes here; all mean that there is no usable tokenizer.
    except Exception as error:
        raise ModelLoadError(
            f"the tokenizer of {path} cannot be loaded: {_first_line(error)}; is tokenizer.json "
            "there and whole?"
        ) from error
    return tokenizer


def _from_pretrained(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForSequenceClassification

    try:
        with _quiet_transformers():
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
        raise ModelLoadError(f"{checkpoint.path} cannot be loaded: {_first_line(error)}") from error
    _check_report(checkpoint.path, report)
    assert not isinstance(model, tuple)
    return model  # type: ignore[no-any-return]


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
                f"{name} of {path} holds NaN or infinity (as {_name(tensor.dtype)}); the "
                "checkpoint is damaged, or its dtype is too narrow for it"
            )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    # Its loading report and progress bar; what it reports is checked above, and refused.
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


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
