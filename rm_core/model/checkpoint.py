"""Finds a checkpoint and checks everything that can be checked before its weights are read.

The module finds the folder (the demo model, a local path, or a download from the hub at a pinned
revision), reads configuration files and safetensors headers, and refuses checkpoints that would
score wrongly. It does not import torch, so that a process that only tokenizes, or only checks a
checkpoint before a start, pays little.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_core.attention.select import Family
from rm_core.catalog.entries import CatalogEntry, find_entry, seeds_dir
from rm_core.config import ModelConfig
from rm_core.errors import ModelLoadError
from rm_core.model.checkpoint_files import (
    TEMPLATES_FOLDER,
    TEXT_PATTERNS,
    check_files,
    get_hub_commit,
    read_json,
    read_tensor_headers,
)
from rm_core.model.config_file import check_config, read_config
from rm_core.model.rope_limits import PositionLimit, read_position_limit

logger = logging.getLogger(__name__)

HEAD = "score.weight"
_EMBEDDING = "embed_tokens.weight"
_ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SAMPLE_BYTES, _NUM_SAMPLES = 1 << 16, 64


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with a reward model that passed every check except reading all its weights.

    Attributes:
        path: local folder.
        revision: commit of the hub repository, or `local-` and a digest of the files.
        family: family of the architecture.
        config: content of config.json.
        entry: catalog entry of the checkpoint; None for a checkpoint that is not in the catalog.
        shapes: shapes of the tensors that transformers will read, by name; empty when only the
            tokenizer was requested.
    """

    path: Path
    revision: str
    family: Family
    config: Mapping[str, Any]
    entry: CatalogEntry | None
    shapes: Mapping[str, Sequence[int]]

    @property
    def max_length(self) -> int:
        """Default maximum number of tokens: the trained length if known, else all positions."""
        positions = self.max_positions
        trained = self.entry.recommended_max_length if self.entry else None
        return min(positions, trained) if trained else positions

    @property
    def max_positions(self) -> int:
        """Maximum number of tokens that the position embeddings support, including scaling."""
        return self.position_limit.positions

    @property
    def position_limit(self) -> PositionLimit:
        """`max_positions`, and how the number was derived."""
        return read_position_limit(self.path / "config.json", self.config)

    @property
    def num_embeddings(self) -> int | None:
        """Rows of the token embedding; None if neither the weights nor the config have it."""
        for name, shape in self.shapes.items():
            if name.endswith(_EMBEDDING):
                return int(shape[0])
        rows = self.config.get("vocab_size")
        return None if rows is None else int(rows)

    def may_ask_for_date(self, chat_template: str | None = None) -> bool:
        """Return whether the chat template may read the clock; in doubt, return True.

        Args:
            chat_template: path of a file that replaces the checkpoint's own template.
        """
        files = [Path(chat_template).expanduser()] if chat_template else self._list_template_files()
        return any(file.is_file() and b"strftime_now" in file.read_bytes() for file in files)

    def _list_template_files(self) -> list[Path]:
        names = ("chat_template.jinja", "tokenizer_config.json", "chat_template.json")
        return [*(self.path / n for n in names), *self.path.glob(f"{TEMPLATES_FOLDER}/*")]


def open_checkpoint(config: ModelConfig, *, weights: bool = True) -> Checkpoint:
    """Find a checkpoint, download it if necessary, and check it.

    Args:
        config: `name`, `revision` and `catalog_name` are read.
        weights: False for a process that only tokenizes: no weight file is fetched or opened.

    Raises:
        ModelLoadError: the checkpoint does not exist or would score wrongly.
    """
    path = _locate(config, weights)
    check_files(path)
    _refuse_adapter(path)
    model_config = read_config(path)
    family = check_config(path / "config.json", model_config)
    shapes = _check_weights(path) if weights else {}
    commit = get_hub_commit(path)
    return Checkpoint(
        path=path,
        revision=commit or f"local-{_digest(path)}",
        family=family,
        config=model_config,
        entry=find_entry(config.name)
        or (find_entry(config.catalog_name) if config.catalog_name else None),
        shapes=shapes,
    )


def find_local_folder(name: str) -> Path | None:
    """Return the absolute path of the existing folder that `name` refers to, or None."""
    try:
        path = Path(name).expanduser()
        return path.resolve() if name.strip() and path.is_dir() else None
    # The name is too long, has the `~` of an unknown user, or contains a null character.
    except (OSError, RuntimeError, ValueError):
        return None


def _locate(config: ModelConfig, weights: bool) -> Path:
    if config.name == "demo":
        if config.revision is not None:
            raise ModelLoadError("the embedded model `demo` has no revisions; omit the revision")
        return seeds_dir() / "demo"
    path = find_local_folder(config.name)
    if path is not None:
        if config.revision is not None and config.revision != get_hub_commit(path):
            raise ModelLoadError(
                f"revision {config.revision!r} was requested, but {config.name} is a local folder; "
                "omit the revision, or give a hub id"
            )
        return path
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", config.name):
        raise ModelLoadError(
            f"folder {config.name!r} does not exist; give `demo`, an existing folder or a hub id "
            "(ORG/NAME)"
        )
    return _download(config, weights)


def _download(config: ModelConfig, weights: bool) -> Path:
    from huggingface_hub import constants, snapshot_download

    patterns = [*TEXT_PATTERNS, "*.safetensors"] if weights else list(TEXT_PATTERNS)
    try:
        return Path(
            snapshot_download(
                config.name,
                revision=config.revision,
                allow_patterns=patterns,
                # huggingface-hub 1.33 asks the hub for the files of a commit even when offline.
                local_files_only=constants.HF_HUB_OFFLINE,
            )
        )
    # The hub's client raises errors of several libraries; all mean that the download failed.
    except Exception as error:
        revision = f" at revision {config.revision!r}" if config.revision else ""
        raise ModelLoadError(
            f"{config.name!r} is not a local folder and could not be downloaded from the hub"
            f"{revision}: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}; "
            "check the name, the revision, the network and HF_TOKEN, or give a local folder"
        ) from error


def _refuse_adapter(path: Path) -> None:
    """Refuse an adapter, alone or next to full weights: the intended model is ambiguous."""
    adapter_files = [name for name in (_ADAPTER, *_ADAPTER_WEIGHTS) if (path / name).exists()]
    if not adapter_files:
        return
    adapter_config = read_json(path / _ADAPTER) if _ADAPTER in adapter_files else {}
    kind = adapter_config.get("peft_type") or "PEFT"
    base = adapter_config.get("base_model_name_or_path")
    base = f"{base!r:.200}" if base else "an unnamed base model"
    if (path / "config.json").exists() and _has_weights(path):
        raise ModelLoadError(
            f"{path} has full weights and a {kind!s:.40} adapter for {base} "
            f"({', '.join(adapter_files)}), so the intended model is ambiguous; remove the "
            "adapter's files, or merge the adapter (merge_and_unload of peft) and give the merged "
            "checkpoint"
        )
    raise ModelLoadError(
        f"{path} is a {kind!s:.40} adapter for {base} ({', '.join(adapter_files)}), not a full "
        "reward model; merge the adapter into the base model with merge_and_unload of peft, save "
        "the result with save_pretrained, and give that folder"
    )


def _has_weights(path: Path) -> bool:
    names = {file.name for pattern in ("*.safetensors", *_PICKLES) for file in path.glob(pattern)}
    return bool(names - {*_ADAPTER_WEIGHTS, "training_args.bin"})


def _check_weights(path: Path) -> dict[str, list[int]]:
    """Return the shapes of the tensors that transformers will read, by name."""
    shapes: dict[str, list[int]] = {}
    for file in _list_weight_files(path):
        shapes |= {name: tensor["shape"] for name, tensor in read_tensor_headers(file)[0].items()}
    if (path / _INDEX).exists() and not (path / _WEIGHTS).exists():
        _check_index(path / _INDEX, shapes)
    if HEAD not in shapes:
        raise ModelLoadError(f"{path} has no {HEAD}: {_explain_missing_head(shapes)}")
    if len(shapes[HEAD]) != 2 or shapes[HEAD][0] != 1:
        raise ModelLoadError(
            f"{HEAD} of {path} has shape {shapes[HEAD]}; a reward model has [1, hidden_size]"
        )
    return shapes


def _list_weight_files(path: Path) -> list[Path]:
    """Return the weight files that transformers will read."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickles = sorted(f.name for pattern in _PICKLES for f in path.glob(pattern))
        contents = f"only {', '.join(pickles)}" if pickles else "no weight files"
        raise ModelLoadError(
            f"{path} has {contents}; only safetensors files are loaded, because a pickle can run "
            "code. Convert the weights (save_pretrained of transformers writes safetensors)"
        )
    if (path / _WEIGHTS).exists():
        others = [file.name for file in files if file.name != _WEIGHTS]
        if others:
            logger.warning(
                "%s has %s and %s; only %s is read: remove it if it is outdated",
                path,
                ", ".join(others[:3]) + (" and more" if len(others) > 3 else ""),
                _WEIGHTS,
                _WEIGHTS,
            )
        return [path / _WEIGHTS]
    if not (path / _INDEX).exists():
        raise ModelLoadError(
            f"{path} has {', '.join(file.name for file in files[:3])}, but neither {_WEIGHTS} nor "
            f"{_INDEX}, which lists the files of a sharded checkpoint; download the checkpoint "
            "again"
        )
    mapping = _read_index(path / _INDEX)
    return [file for file in files if file.name in set(mapping.values())]


def _read_index(index: Path) -> dict[str, str]:
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise ModelLoadError(
            f"{index} has no weight_map object, which maps each tensor to its file; download the "
            "checkpoint again"
        )
    for name, file in mapping.items():
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", file):
            raise ModelLoadError(
                f"{index} maps {name[:80]} to {file!r:.80}; the value must be the name of a "
                "safetensors file in the folder: download the checkpoint again"
            )
    return mapping


def _check_index(index: Path, shapes: Mapping[str, list[int]]) -> None:
    missing = sorted(set(_read_index(index)) - set(shapes))
    if missing:
        raise ModelLoadError(
            f"{index} lists {len(missing)} tensors that no file in the folder contains, such as "
            f"{missing[0]}; a shard is missing: download the checkpoint again"
        )


def _explain_missing_head(shapes: Mapping[str, list[int]]) -> str:
    other = next((name for name in sorted(shapes) if name.endswith(f".{HEAD}")), None)
    if other is None:
        return (
            "the reward head is missing, and a newly initialized head would give random rewards. "
            "Is this the base model, or an adapter? Give the full reward model"
        )
    prefix = other.removesuffix(HEAD)
    wrapper = {
        "_orig_mod.": "; a model compiled by torch.compile was saved: save its `_orig_mod`",
        "module.": "; a model wrapped for data parallelism was saved: save its `module`",
    }.get(prefix, "")
    return (
        f"the head has another name, {other[:120]}{wrapper}. Remove {prefix[:80]!r} from the "
        "start of every name, or save the model itself with save_pretrained"
    )


def _digest(path: Path) -> str:
    """Return 16 hex digits that change with the configuration and practically any retraining.

    The digest covers configuration and tokenizer files in full, and of each weight file the
    header, the reward head and samples spread over the file: reading 54 GB in full at every start
    would take minutes.
    """
    digest = hashlib.sha256()
    for pattern in TEXT_PATTERNS:
        for file in sorted(path.glob(pattern)):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                hashlib.file_digest(stream, lambda: digest)
    for file in sorted(path.glob("*.safetensors")):
        digest.update(file.name.encode() + str(file.stat().st_size).encode())
        tensors, start = read_tensor_headers(file)
        size = file.stat().st_size
        ranges = [(size * i // _NUM_SAMPLES, _SAMPLE_BYTES) for i in range(_NUM_SAMPLES)]
        if HEAD in tensors:
            first, last = tensors[HEAD]["data_offsets"]
            ranges.append((start + first, last - first))
        with file.open("rb") as stream:
            digest.update(stream.read(start))
            for offset, length in ranges:
                stream.seek(offset)
                digest.update(stream.read(length))
    return digest.hexdigest()[:16]
