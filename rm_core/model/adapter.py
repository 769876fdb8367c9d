"""Low-rank adapters (LoRA) of PEFT, which are merged into the weights when a model is loaded."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_core.errors import ModelLoadError
from rm_core.model.checkpoint_files import check_file, read_json
from rm_core.model.weight_files import WeightFiles, find_value_head
from rm_core.text import format_names, quote, summarize_error

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
logger = logging.getLogger(__name__)

_PREFIX = "base_model.model."
_LORA = "lora_"
_HEADS = ("score.", "v_head.")
_QUANTIFIED_GROUP, _QUANTIFIERS = re.compile(r"\)[*+{]"), re.compile(r"[*+{]")
_MAX_REPEATS = 4


@dataclass(frozen=True, slots=True)
class Adapter:
    """A folder with an adapter that passed its checks."""

    path: Path  # local folder
    revision: str  # commit of the hub repository, or `local-` and a digest of the files
    config: Mapping[str, Any]  # content of adapter_config.json
    files: WeightFiles | None  # weights of the adapter; None when only the tokenizer was requested
    # Shapes of the head that was trained with the adapter, by the names that they have in a full
    # checkpoint; empty without one.
    head_shapes: Mapping[str, Sequence[int]]

    def read_head(self) -> dict[str, torch.Tensor]:
        """Read the head's tensors on the CPU, by the names of `head_shapes`."""
        assert self.files is not None
        names = {*self.head_shapes, *(_PREFIX + name for name in self.head_shapes)}
        tensors = self.files.read_tensors(names)
        return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def read_adapter(
    path: Path, base: Path, *, base_name: str, revision: str, allow_bin: bool, weights: bool
) -> Adapter:
    """Return the adapter in a folder, if it can be merged exactly."""
    if not (path / ADAPTER_CONFIG).exists():
        raise ModelLoadError(
            f"{path} has no {ADAPTER_CONFIG}, so it is not an adapter; the name is BASE+ADAPTER, "
            "the base model first; give a full model alone"
        )
    config = read_json(path / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise ModelLoadError(
            f"{path} has an adapter of type {quote(config.get('peft_type'), 40)}; only LORA "
            "adapters are merged: merge it with merge_and_unload of peft, and give the result"
        )
    _check_patterns(path, config)
    theirs = _read_template(path)
    if theirs is not None and theirs != _read_template(base):
        logger.warning(
            "the adapter %s has another chat template than the base model, whose template is used; "
            "if the adapter was trained with its own template, give that with the setting "
            "`chat_template`",
            path,
        )
    if not weights:
        return Adapter(path, revision, config, None, {})
    trained_on = config.get("base_model_name_or_path")
    given = {_get_short_name(name) for name in (base_name, str(base))}
    if isinstance(trained_on, str) and trained_on and _get_short_name(trained_on) not in given:
        logger.warning(
            "the adapter %s was trained on %s, and is merged into %s; on another base model its "
            "rewards are wrong",
            path,
            quote(trained_on, 120),
            base_name,
        )
    if importlib.util.find_spec("peft") is None:
        raise ModelLoadError(
            f"{base}+{path} needs peft, which merges the adapter: pip install 'skyreward[lora]'"
        )
    file = next((path / name for name in ADAPTER_WEIGHTS if (path / name).exists()), None)
    if file is None or (file.suffix == ".bin" and not allow_bin):
        advice = (
            f"{file.name} is a pickle file, which is read only if the setting `allow_bin` is on "
            "(--allow-bin)"
            if file
            else "download it again"
        )
        raise ModelLoadError(f"{path} has no {ADAPTER_WEIGHTS[0]}; {advice}")
    check_file(file, None)
    files = WeightFiles((file,), find_value_head(path, allow_bin=allow_bin))
    shapes = {name.removeprefix(_PREFIX): shape for name, shape in files.read_shapes().items()}
    heads = {name: shape for name, shape in shapes.items() if name.startswith(_HEADS)}
    others = [name for name in shapes if _LORA not in name and name not in heads]
    changed = [name for name in heads if _LORA in name]
    if unmergeable := [*others, *changed]:
        raise ModelLoadError(
            f"the adapter {path} changes {format_names(sorted(unmergeable), 3)}; only low-rank "
            "layers of the decoder and a complete head are merged: merge it with merge_and_unload "
            "of peft, and give the result"
        )
    return Adapter(path, revision, config, files, heads)


def _check_patterns(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse regular expressions of module names that may take forever to match."""
    patterns = [config.get("target_modules"), config.get("exclude_modules")]
    for key in ("rank_pattern", "alpha_pattern"):
        patterns += config[key] if isinstance(config.get(key), dict) else []
    for pattern in patterns:
        if not isinstance(pattern, str):
            continue
        if _QUANTIFIED_GROUP.search(pattern) or len(_QUANTIFIERS.findall(pattern)) > _MAX_REPEATS:
            raise ModelLoadError(
                f"{path / ADAPTER_CONFIG} has the pattern {quote(pattern, 80)}, which repeats a "
                f"group or has more than {_MAX_REPEATS} repetitions, so matching may take forever; "
                "list the names of the modules instead"
            )


def _get_short_name(name: str) -> str:
    """Return the last component of a path or a hub id, in lower case.

    Of a folder in the hub's cache: the name of its repository.
    """
    in_cache = re.search(r"models--(?:[^/]*--)?([^/]+)/snapshots/", name)
    return (in_cache[1] if in_cache else Path(name).name).lower()


def _read_template(folder: Path) -> str | None:
    """Return the chat template of a folder's tokenizer; None without one."""
    if (file := folder / "chat_template.jinja").exists():
        return file.read_text(encoding="utf-8", errors="replace")
    if (file := folder / "tokenizer_config.json").exists():
        template = read_json(file).get("chat_template")
        return template if isinstance(template, str) else None
    return None


def merge_adapter(body: PreTrainedModel, adapter: Adapter) -> None:
    """Merge an adapter into the layers of a decoder on the CPU, in place, as peft does."""
    import torch
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict

    assert adapter.files is not None
    names = [name for name in adapter.files.read_shapes() if _LORA in name]
    # Adapters name the layers as in a full model, where the decoder has a name.
    shell: Any = torch.nn.Module()
    setattr(shell, body.base_model_prefix, body)
    shell.config = body.config
    shell.base_model_prefix = body.base_model_prefix  # read where transformers renames weights
    options = {**adapter.config, "modules_to_save": None, "inference_mode": True}
    options = {name: options[name] for name in options if name in LoraConfig.__dataclass_fields__}
    try:
        model: Any = PeftModel(shell, LoraConfig(**{**options, "task_type": None}))
        result: Any = set_peft_model_state_dict(model, adapter.files.read_tensors(names))
        missing = [name for name in result.missing_keys if _LORA in name]
        if missing or result.unexpected_keys:
            raise ModelLoadError(
                f"the adapter {adapter.path} does not fit the base model: "
                f"{format_names(sorted([*missing, *result.unexpected_keys]), 3)}; is it an adapter "
                f"of {quote(adapter.config.get('base_model_name_or_path'), 120)}?"
            )
        model.base_model.merge_and_unload(safe_merge=True)
    except ModelLoadError:
        raise
    # peft raises many classes here; all mean that the adapter cannot be merged.
    except Exception as error:
        raise ModelLoadError(
            f"the adapter {adapter.path} cannot be merged: {summarize_error(error)}; "
            f"is it an adapter of {quote(adapter.config.get('base_model_name_or_path'), 120)}?"
        ) from error
