"""Loads weights into transformers' decoder and the head, and refuses those it cannot trust.

The decoder is transformers' own class without a head, chosen by `model_type`; code in the
checkpoint's folder is never run. The head is read from the files (`rm_core.heads`), so that any
layout of heads works with any decoder.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rm_core.errors import ModelLoadError
from rm_core.heads import CappedTokensHead, Head, JudgeHead, MlpHead, build_row_head
from rm_core.heads.layout import LM_HEAD, HeadLayout
from rm_core.model.adapter import merge_adapter
from rm_core.model.checkpoint import Checkpoint
from rm_core.model.quantization import silence_torchao
from rm_core.model.weight_files import load_pickle
from rm_core.text import format_names, summarize_error

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Tensors that a checkpoint may have in addition to the decoder's and the head's, without effect on
# rewards.
_HARMLESS_EXTRAS = ("lm_head.", "rotary_emb.inv_freq")

# For each part of the config; the decoder's is replaced by the packed attention. Eager attention in
# a vision tower would store a matrix of [patches, patches].
_PLAIN_ATTENTION = {"": "eager", "text_config": "eager", "vision_config": "sdpa"}
# Qwen2-VL and Qwen2.5-VL: transformers 5 moves all names that start with `model` to the language
# model while it loads the decoder without a head, also those of the tower in the newer layout.
_RENAMED = {r"^model\.visual\.": "visual."}


def read_transformers_config(path: Path) -> PreTrainedConfig:
    """Return transformers' config of a checkpoint, without references to code in its folder."""
    from transformers import AutoConfig

    try:
        with silence_transformers():
            config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    # transformers raises many classes here; all mean that a value of the file is wrong.
    except Exception as error:
        raise ModelLoadError(
            f"{path / 'config.json'} is rejected by transformers: {summarize_error(error)}; "
            "correct the value, or download the file again"
        ) from error
    if hasattr(config, "auto_map"):
        del config.auto_map
    return config


def read_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """Load the decoder of a checkpoint on the CPU; every weight is accounted for."""
    silence_torchao()
    assert checkpoint.files is not None
    assert checkpoint.head is not None
    config = read_transformers_config(checkpoint.path)
    kind = _check_shapes(checkpoint, config)
    source: dict[str, Any] = {"pretrained_model_name_or_path": checkpoint.path}
    if checkpoint.files.is_pickle:
        tensors: dict[str, torch.Tensor] = {}
        for file in checkpoint.files.files:
            tensors |= load_pickle(file, map_location="cpu")
        source = {"pretrained_model_name_or_path": None, "state_dict": tensors}
    try:
        with silence_transformers():
            loaded: Any = kind.from_pretrained(
                **source,
                config=config,
                dtype=dtype,
                attn_implementation=_PLAIN_ATTENTION,
                key_mapping=_RENAMED if checkpoint.vision is not None else None,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # listed in the report, and refused below
                output_loading_info=True,
            )
    # transformers raises many classes here; all mean that the model cannot be served.
    except Exception as error:
        raise ModelLoadError(
            f"{checkpoint.path} cannot be loaded: {summarize_error(error)}"
        ) from error
    model: PreTrainedModel
    model, report = loaded
    _check_report(checkpoint.path, report, checkpoint.head.tensors)
    if checkpoint.adapter is not None:
        merge_adapter(model, checkpoint.adapter)
    prefix = model.base_model_prefix
    tensors_by_name = {f"{prefix}.{name}": t for name, t in model.state_dict().items()}
    _check_finite(tensors_by_name, checkpoint.path)
    return model


def read_head(checkpoint: Checkpoint, body: PreTrainedModel, label_ids: Sequence[int]) -> Head:
    """Load the head of a checkpoint, on the device of the decoder's last layer.

    A head that transformers' classifiers have gets the decoder's dtype first, as there; a value
    head keeps the dtype of the files, as in trl. All arithmetic is in float32. `label_ids` are the
    tokens whose logits are read, if the checkpoint's layout names none.
    """
    layout = checkpoint.head
    assert layout is not None
    device = list(body.parameters())[-1].device
    tensors = _read_head_tensors(checkpoint, layout.tensors)
    if layout.name in ("score", "score MLP", "lm_head"):
        tensors = {name: tensor.to(body.dtype) for name, tensor in tensors.items()}
    _check_finite(tensors, checkpoint.path)
    if layout.name == "lm_head":
        return _build_token_head(checkpoint, body, tensors, layout.tokens or label_ids).to(device)
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    weight = layout.tensors[0]
    row = build_row_head(
        tensors[weight],
        tensors.get(weight.removesuffix("weight") + "bias"),
        layout.factors,
        layout.description,
    )
    if layout.name != "score MLP":
        return row
    bias = tensors.get("score.0.bias")
    bias = None if bias is None else bias.float()
    return MlpHead(tensors["score.0.weight"].float(), bias, row, description=row.description)


def _read_head_tensors(checkpoint: Checkpoint, names: Collection[str]) -> dict[str, torch.Tensor]:
    assert checkpoint.files is not None
    tensors = checkpoint.files.read_tensors(names)
    if checkpoint.adapter is not None:
        tensors |= {n: t for n, t in checkpoint.adapter.read_head().items() if n in names}
    return tensors


def _build_token_head(
    checkpoint: Checkpoint,
    body: PreTrainedModel,
    tensors: Mapping[str, torch.Tensor],
    tokens: Sequence[int],
) -> Head:
    """Build a head from rows of the language model's head."""
    assert checkpoint.head is not None
    text_config: Any = body.config.get_text_config()
    softcap = getattr(text_config, "final_logit_softcapping", None)
    embedding: Any = body.get_input_embeddings()
    weight, bias = tensors.get(LM_HEAD), tensors.get("lm_head.bias")
    if getattr(text_config, "tie_word_embeddings", False):
        tied = embedding.weight.detach()
        if weight is not None and not torch.equal(weight, tied.cpu()):
            raise ModelLoadError(
                f"{checkpoint.path} has an {LM_HEAD} that differs from the token embedding, but "
                "config.json says tie_word_embeddings; correct one of the two"
            )
        weight = tied
    if weight is None:
        raise ModelLoadError(
            f"{checkpoint.path} has no {LM_HEAD}, and config.json does not say that the token "
            "embedding is the head (tie_word_embeddings); give the full causal language model"
        )
    if max(tokens) >= len(weight):
        raise ModelLoadError(
            f"token {max(tokens)} was to be read, but the head of {checkpoint.path} has "
            f"{len(weight)} rows, for tokens 0 to {len(weight) - 1}; choose another token"
        )
    ids = list(tokens)
    description = f"{checkpoint.head.description} (rows {', '.join(map(str, ids))})"
    rows = weight[ids].float()
    row_bias = None if bias is None else bias[ids].float()
    head: Head
    if softcap is not None:
        head = CappedTokensHead(rows, row_bias, float(softcap), description=description)
    else:
        head = build_row_head(rows, row_bias, (1.0, -1.0)[: len(ids)], description)
    if checkpoint.kind.kind != "judge":
        return head
    return JudgeHead(head, weight, bias, softcap, (ids[0], ids[1]), description=description)


def _check_shapes(checkpoint: Checkpoint, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Compare the files' headers with the config before the declared memory is allocated.

    Returns:
        The class of the decoder.
    """
    from transformers import AutoModel
    from transformers.conversion_mapping import extract_weight_conversions_for_model

    try:
        with silence_transformers(), torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ModelLoadError(
            f"transformers cannot build the model that {checkpoint.path / 'config.json'} "
            f"describes: {summarize_error(error)}; correct the file, or download it again"
        ) from error
    assert checkpoint.head is not None
    hidden_size = config.get_text_config().hidden_size
    _check_head_shapes(checkpoint, checkpoint.head, hidden_size)
    # Some checkpoints omit the name of the decoder.
    prefix = f"{model.base_model_prefix}."
    stored = {name.removeprefix(prefix): list(shape) for name, shape in checkpoint.shapes.items()}
    declared = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    if extract_weight_conversions_for_model(model):
        # transformers renames and merges tensors while it loads, such as those of experts.
        _check_total_size(checkpoint, declared)
        return type(model)
    _check_report(
        checkpoint.path,
        {
            "missing_keys": [prefix + name for name in declared if name not in stored],
            "mismatched_keys": [
                f"{prefix}{name} {stored[name]} instead of {shape}"
                for name, shape in declared.items()
                if name in stored and stored[name] != shape
            ],
        },
    )
    return type(model)


def _check_total_size(checkpoint: Checkpoint, declared: Mapping[str, Sequence[int]]) -> None:
    stored = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    needed = sum(math.prod(shape) for shape in declared.values())
    if needed > stored:
        raise ModelLoadError(
            f"config.json of {checkpoint.path} describes a model of {needed:,} weights, and the "
            f"files have {stored:,}; config.json and the weights do not match"
        )


def _check_head_shapes(checkpoint: Checkpoint, layout: HeadLayout, hidden_size: int) -> None:
    shapes = {**checkpoint.shapes, **(checkpoint.adapter.head_shapes if checkpoint.adapter else {})}
    num_labels = len(layout.factors)
    inner = list(shapes.get("score.0.weight", ()))[:1] if layout.name == "score MLP" else []
    size = inner[0] if inner else hidden_size
    expected = {
        "score.0.weight": [size, hidden_size],
        "score.0.bias": [size],
        "lm_head.weight": [*shapes.get(LM_HEAD, ())[:1], hidden_size],
        "lm_head.bias": list(shapes.get(LM_HEAD, ())[:1]),
    }
    mismatched = []
    for name in layout.tensors:
        shape = expected.get(name, [num_labels] if name.endswith("bias") else [num_labels, size])
        if list(shapes[name]) != shape:
            mismatched.append(f"{name} {list(shapes[name])} instead of {shape}")
    _check_report(checkpoint.path, {"mismatched_keys": mismatched})


def _check_report(
    path: Path, report: Mapping[str, Any], head_tensors: Collection[str] = ()
) -> None:

    def list_keys(kind: str) -> list[str]:
        return sorted(map(str, report.get(kind, ())))

    problems = {
        "are missing and would be random": list_keys("missing_keys"),
        "have a different shape than in the config": list_keys("mismatched_keys"),
        "could not be converted": list_keys("error_msgs"),
        "do not belong to any module of the model": [
            key
            for key in list_keys("unexpected_keys")
            if key not in head_tensors and not any(extra in key for extra in _HARMLESS_EXTRAS)
        ],
    }
    for problem, keys in problems.items():
        if keys:
            raise ModelLoadError(
                f"weights of {path} {problem}: {format_names(keys, 3)}; config.json and the "
                "weights do not match"
            )


def _check_finite(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
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
