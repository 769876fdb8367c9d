"""Checks config.json and tokenizer_config.json before transformers reads them.

Refused are settings that change what the architecture computes, settings that name code or kernels
to fetch, and values on which transformers hangs or fails with an error that names no file. Which
architectures are served is not decided by a list, but by a measurement (`rm_core.model.probe` and
`rm_core.model.self_check`).
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from rm_core.errors import ModelLoadError
from rm_core.model.checkpoint_files import MAX_CONFIG_BYTES, read_json
from rm_core.model.rope_limits import MAX_POSITIONS, read_position_limit
from rm_core.text import quote

logger = logging.getLogger(__name__)

# Keys of config.json, in any object of the file, that change what is computed or by which code.
_ENGINE_KEYS = re.compile(
    r"_?(attn|experts)_implementation.*|use_kernels|kernel_config|transformers_weights"
)
# Versions of transformers before 5 write this key, with a boolean; version 5 does not read it.
_IGNORED_KEY = "_attn_implementation_autoset"
_MAX_SIZE = 1 << 24
_MAX_LAYERS = 1_000
_MAX_ID = 1 << 31
# Keys of tokenizer_config.json that make transformers open other files, anywhere on the machine.
_FILE_KEYS = (
    "tokenizer_file", "vocab_file", "merges_file", "fast_tokenizer_files", "tokenizer_object",
    "gguf_file", "init_inputs",
)  # fmt: skip
_MAX_DEPTH = 100
_MAX_ENTRIES = 10_000

Rule: TypeAlias = tuple[str, Callable[[Any], bool]]
"""Description of the values that are allowed, and the test for a value."""


def _integer(low: int, high: int) -> Rule:
    return (
        f"an integer from {low:,} to {high:,}",
        lambda value: type(value) is int and low <= value <= high,
    )


def _or_null(rule: Rule) -> Rule:
    return f"{rule[0]}, or null", lambda value: value is None or rule[1](value)


_NUMBER: Rule = ("a number", lambda value: type(value) in (int, float))
_POSITIVE: Rule = ("a number above 0", lambda value: type(value) in (int, float) and value > 0)
_BOOLEAN: Rule = ("true or false", lambda value: type(value) is bool)
_STRING: Rule = ("a string", lambda value: isinstance(value, str))
_STRINGS: Rule = (
    "a list of strings",
    lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value),
)
_ID = _integer(-_MAX_ID, _MAX_ID)
_IDS: Rule = (
    "an integer or a list of integers",
    lambda value: _ID[1](value) or (isinstance(value, list) and all(map(_ID[1], value))),
)
_RULES: Mapping[str, Rule] = {
    "model_type": _STRING,
    "hidden_size": _integer(1, _MAX_SIZE),
    "intermediate_size": _integer(1, _MAX_SIZE),
    "vocab_size": _integer(1, _MAX_SIZE),
    "num_hidden_layers": _integer(1, _MAX_LAYERS),
    "num_attention_heads": _integer(1, 1 << 16),
    "num_key_value_heads": _or_null(_integer(1, 1 << 16)),
    "head_dim": _or_null(_integer(1, 1 << 16)),
    "max_window_layers": _or_null(_integer(0, _MAX_SIZE)),
    "sliding_window": _or_null(_integer(1, MAX_POSITIONS)),
    "rms_norm_eps": _POSITIVE,
    "rope_theta": _or_null(_POSITIVE),
    "partial_rotary_factor": _or_null(_POSITIVE),
    "query_pre_attn_scalar": _POSITIVE,
    "attn_logit_softcapping": _or_null(_POSITIVE),
    "final_logit_softcapping": _or_null(_POSITIVE),
    "attention_dropout": _or_null(_NUMBER),
    "tie_word_embeddings": _BOOLEAN,
    "attention_bias": _BOOLEAN,
    "mlp_bias": _BOOLEAN,
    "use_sliding_window": _or_null(_BOOLEAN),
    "use_bidirectional_attention": _or_null(_BOOLEAN),
    "hidden_act": _or_null(_STRING),
    "hidden_activation": _or_null(_STRING),
    "pad_token_id": _or_null(_ID),
    "bos_token_id": _or_null(_IDS),
    "eos_token_id": _or_null(_IDS),
    "num_labels": _or_null(_integer(0, _MAX_SIZE)),
    "id2label": _or_null(("an object", lambda value: isinstance(value, dict))),
    "label2id": _or_null(("an object", lambda value: isinstance(value, dict))),
    "architectures": _or_null(_STRINGS),
    "layer_types": _or_null(_STRINGS),
    "dtype": _or_null(("the name of a dtype, such as bfloat16", lambda v: _is_dtype(v))),
    "torch_dtype": _or_null(("the name of a dtype, such as bfloat16", lambda v: _is_dtype(v))),
}


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and value.removeprefix("torch.") in (
        "float32", "float", "float64", "double", "bfloat16", "float16", "half",
        "float8_e4m3fn", "float8_e5m2",
    )  # fmt: skip


@functools.cache  # once in a process, which may open a checkpoint several times
def _warn_of_code(file: Path) -> None:
    logger.warning(
        "%s requests the checkpoint's own code (auto_map), which is never run: the decoder is that "
        "of transformers, and the head is read from the weights",
        file,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of config.json, after checking the tokenizer's files too."""
    config = read_json(folder / "config.json", MAX_CONFIG_BYTES)
    files = {"config.json": config}
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            files[name] = read_json(folder / name)
    for name, content in files.items():
        _refuse_long_lists(folder / name, content)
        if content.get("auto_map") and name != "config.json":
            raise ModelLoadError(
                f"{folder / name} requests the checkpoint's own code (auto_map); remote code is "
                "never run. Convert the tokenizer to a class of transformers"
            )
    if config.get("auto_map"):
        _warn_of_code(folder / "config.json")
    tokenizer_config = files.get("tokenizer_config.json", {})
    for key in _FILE_KEYS:
        if tokenizer_config.get(key):
            raise ModelLoadError(
                f"{folder / 'tokenizer_config.json'} has {key} = "
                f"{quote(tokenizer_config[key], 80)}, which may make transformers read a file "
                "outside the checkpoint; remove the key, since the tokenizer is in tokenizer.json"
            )
    return config


def check_config(file: Path, config: Mapping[str, Any]) -> str:
    """Check a config.json and return its `model_type`."""
    _refuse_switches(file, config)
    for key, (allowed, is_allowed) in _RULES.items():
        # transformers writes 0 for a window that is not used.
        is_unused = key == "sliding_window" and config.get("use_sliding_window") is False
        if key in config and not is_allowed(config[key]) and not (is_unused and config[key] == 0):
            raise ModelLoadError(
                f"{key} of {file} is {quote(config[key], 80)}; it must be {allowed}: correct "
                "it, or download the file again"
            )
    if config.get("model_type") is None:
        raise ModelLoadError(
            f"model_type of {file} is missing, and transformers builds the model by it; download "
            "the file again"
        )
    _check_positions(file, config)
    _check_sizes(file, config)
    return str(config["model_type"])


def _refuse_switches(file: Path, config: Mapping[str, Any]) -> None:
    for key, value in _iter_keys(config, depth=0):
        if key == _IGNORED_KEY and isinstance(value, bool):
            continue
        if _ENGINE_KEYS.fullmatch(key) and value is not None:
            raise ModelLoadError(
                f"{file} has {key[:60]} = {quote(value, 80)}, which selects how transformers "
                "computes or what it fetches; remove the key: the setting `attention` selects the "
                "attention backend"
            )
    for key in ("quantization_config", "compression_config"):
        if config.get(key) is not None:
            raise ModelLoadError(
                f"{file} has a {key}: its weights are quantized, and only unquantized weights are "
                "supported, since rewards would differ from the model's own. Give the checkpoint "
                "before quantization, and choose a `quantization` here if it is too large"
            )
    # transformers treats every false value, including null, as a mask that is not causal.
    if config.get("is_causal", True) is not True:
        raise ModelLoadError(
            f"{file} has is_causal = {json.dumps(config['is_causal'])[:40]}; it must be true: with "
            "another value transformers may let tokens attend to later tokens. Only causal models "
            "are supported: remove the key if the model was trained as a causal model"
        )
    if config.get("attention_chunk_size") is not None:
        raise ModelLoadError(
            f"{file} has attention_chunk_size = "
            f"{quote(config['attention_chunk_size'], 80)}, which splits attention into chunks; "
            "packed rows do not: remove the key if the model was trained without it"
        )
    if config.get("use_bidirectional_attention"):
        raise ModelLoadError(
            f"{file} has use_bidirectional_attention = "
            f"{quote(config['use_bidirectional_attention'], 80)}; only causal models are "
            "supported: remove the key if the model was trained as a causal model"
        )


def _refuse_long_lists(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse lists that transformers would process for minutes."""
    for key, value in (("the file itself", config), *_iter_keys(config, depth=0)):
        if isinstance(value, list | dict) and len(value) > _MAX_ENTRIES:
            raise ModelLoadError(
                f"{key[:60]} of {file} has {len(value):,} entries, and at most {_MAX_ENTRIES:,} "
                "are allowed; correct it, or download the file again"
            )


def _iter_keys(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of an object and of the objects inside it."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key, inner
            yield from _iter_keys(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _iter_keys(inner, depth + 1)


def _check_positions(file: Path, config: Mapping[str, Any]) -> None:
    allowed, is_allowed = _integer(1, MAX_POSITIONS)
    positions = config.get("max_position_embeddings")
    if type(positions) is not int:
        raise ModelLoadError(
            f"{file} has no integer max_position_embeddings, so the maximum length of a "
            "conversation is unknown; add it, or download the file again"
        )
    if not is_allowed(positions):
        raise ModelLoadError(
            f"max_position_embeddings of {file} is {positions:,}; it must be {allowed}: correct "
            "it, or download the file again"
            if positions.bit_length() < 100
            else f"max_position_embeddings of {file} is too large; it must be {allowed}"
        )
    read_position_limit(file, config)


def _check_sizes(file: Path, config: Mapping[str, Any]) -> None:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if hidden and heads and hidden % heads and config["model_type"] == "llama":
        raise ModelLoadError(
            f"{file} has hidden_size {hidden}, which is not a multiple of num_attention_heads "
            f"{heads}; correct one of the two"
        )
    keys = config.get("num_key_value_heads")
    if heads and keys and heads % keys:
        raise ModelLoadError(
            f"{file} has num_attention_heads {heads}, which is not a multiple of "
            f"num_key_value_heads {keys}; correct one of the two"
        )
    types, layers = config.get("layer_types"), config.get("num_hidden_layers")
    known = ("full_attention", "sliding_attention")
    if types and (unknown := sorted(set(types) - set(known))):
        raise ModelLoadError(
            f"layer_types of {file} has {unknown[0]!r:.60}; supported: {', '.join(known)}"
        )
    if types is not None and layers is not None and len(types) != layers:
        raise ModelLoadError(
            f"layer_types of {file} has {len(types)} entries, but num_hidden_layers is {layers}; "
            "correct one of the two"
        )
    pad, rows = config.get("pad_token_id"), config.get("vocab_size")
    if pad is not None and rows is not None and not -rows <= pad < rows:
        raise ModelLoadError(
            f"pad_token_id of {file} is {pad}, but the embedding has {rows} rows (vocab_size); "
            "use the tokenizer's padding id, or resize the embedding "
            "(model.resize_token_embeddings)"
        )
