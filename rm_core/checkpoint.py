"""Everything about a checkpoint that can be known, and refused, before its weights are read.

Finds the folder (the demo model, a local path, or a download from the hub at a pinned revision),
reads configuration files and safetensors headers, and refuses what would score wrongly. Light: no
torch, so that a process that only tokenizes, or only checks before a start, pays little.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_core.attention.choice import Family
from rm_core.catalog import CatalogEntry, find_entry, seeds_dir
from rm_core.config import ModelConfig
from rm_core.errors import ModelLoadError

FAMILIES: Mapping[str, Family] = {
    "LlamaForSequenceClassification": "llama",
    "Gemma2ForSequenceClassification": "gemma2",
    "Qwen3ForSequenceClassification": "qwen3",
}
HEAD = "score.weight"
_TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SAMPLE_BYTES, _NUM_SAMPLES = 1 << 16, 64


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with a reward model that passed every check short of reading all its weights.

    Attributes:
        path: the local folder.
        revision: commit of the hub repository, or `local-` and a digest of the files.
        family: of the architecture.
        config: the content of config.json.
        entry: what the catalogue knows of it; None for a checkpoint that is not in it.
    """

    path: Path
    revision: str
    family: Family
    config: Mapping[str, Any]
    entry: CatalogEntry | None

    @property
    def max_length(self) -> int:
        """Most tokens by default: the trained length where known, else all positions."""
        positions = self.max_positions
        trained = self.entry.recommended_max_length if self.entry else None
        return min(positions, trained) if trained else positions

    @property
    def max_positions(self) -> int:
        """`max_position_embeddings` of the config."""
        return int(self.config["max_position_embeddings"])


def open_checkpoint(config: ModelConfig, *, weights: bool = True) -> Checkpoint:
    """Find, download if need be, and check a checkpoint.

    Args:
        config: `name`, `revision` and `known_as` are read.
        weights: False for a process that only tokenizes: no weight file is fetched or opened.

    Raises:
        ModelLoadError: there is no such checkpoint, or it would score wrongly.
    """
    path = _locate(config, weights)
    model_config = _read_config(path)
    family = _check_config(path, model_config)
    if weights:
        _check_weights(path)
    commit = _hub_commit(path)
    return Checkpoint(
        path=path,
        revision=commit or f"local-{_digest(path)}",
        family=family,
        config=model_config,
        entry=find_entry(config.name) or (find_entry(config.known_as) if config.known_as else None),
    )


def local_folder(name: str) -> Path | None:
    """The existing folder that a model's name means, absolute; None if it means something else."""
    try:
        path = Path(name).expanduser()
        return path.resolve() if name.strip() and path.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long; `~` of nobody; a null character
        return None


def _locate(config: ModelConfig, weights: bool) -> Path:
    if config.name == "demo":
        if config.revision is not None:
            raise ModelLoadError("the embedded model `demo` has no revisions; leave it out")
        return seeds_dir() / "demo"
    path = local_folder(config.name)
    if path is not None:
        if config.revision is not None and config.revision != _hub_commit(path):
            raise ModelLoadError(
                f"revision {config.revision!r} was asked for, but {config.name} is a local folder; "
                "leave the revision out, or give a hub id"
            )
        return path
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", config.name):
        raise ModelLoadError(
            f"there is no folder {config.name!r}; give `demo`, an existing folder or a hub id "
            "(ORG/NAME)"
        )
    return _download(config, weights)


def _download(config: ModelConfig, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*_TOKENIZER_FILES, "*.safetensors"] if weights else list(_TOKENIZER_FILES)
    try:
        return Path(
            snapshot_download(config.name, revision=config.revision, allow_patterns=patterns)
        )
    # The hub's client raises errors of several libraries; all mean that nothing was fetched.
    except Exception as error:
        revision = f" at revision {config.revision!r}" if config.revision else ""
        raise ModelLoadError(
            f"{config.name!r} is no local folder and could not be fetched from the hub{revision}: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason'}; "
            "check the name, the revision, the network and HF_TOKEN, or give a local folder"
        ) from error


def _hub_commit(path: Path) -> str | None:
    # A folder of the hub's cache: models--ORG--NAME/snapshots/COMMIT.
    in_cache = path.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", path.name)
    return path.name if in_cache else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint.

    Raises:
        ModelLoadError: missing, unreadable, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"{path.parent} has no {path.name}; is it a checkpoint?") from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} holds no JSON object")
    return content


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path / "config.json")
    tokenizer_config = path / "tokenizer_config.json"
    files = {"config.json": config}
    if tokenizer_config.exists():
        files["tokenizer_config.json"] = read_json(tokenizer_config)
    for name, content in files.items():
        if content.get("auto_map"):
            raise ModelLoadError(
                f"{path / name} asks for code of the checkpoint's own (auto_map); remote code is "
                "never run. Convert the checkpoint to a class of transformers"
            )
    return config


def _check_config(path: Path, config: Mapping[str, Any]) -> Family:
    architectures = config.get("architectures") or ["none"]
    family = FAMILIES.get(architectures[0])
    if family is None:
        raise ModelLoadError(f"{path} is a {architectures[0]}; served are {', '.join(FAMILIES)}")
    labels = config.get("num_labels", len(config.get("id2label") or ["the one"]))
    if labels != 1:
        raise ModelLoadError(
            f"{path / 'config.json'} declares {labels} labels; a reward model has exactly one"
        )
    if not isinstance(config.get("max_position_embeddings"), int):
        raise ModelLoadError(
            f"{path / 'config.json'} has no whole number as max_position_embeddings, so nothing "
            "says how long a conversation may be; add it, or download the file again"
        )
    return family


def _check_weights(path: Path) -> None:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickles = sorted(f.name for pattern in _PICKLES for f in path.glob(pattern))
        found = f"only {', '.join(pickles)}" if pickles else "no weight file at all"
        raise ModelLoadError(
            f"{path} has {found}; only safetensors is loaded, since a pickle can run code. Convert "
            "it (save_pretrained of transformers writes safetensors)"
        )
    shapes: dict[str, list[int]] = {}
    for file in files:
        shapes |= {name: tensor["shape"] for name, tensor in _tensors(file)[0].items()}
    _check_index(path, shapes)
    if HEAD not in shapes:
        raise ModelLoadError(
            f"{path} has no {HEAD}: the reward head is missing, and a new one would give random "
            "rewards. Is this the base model, or an adapter? Give the full reward model"
        )
    if len(shapes[HEAD]) != 2 or shapes[HEAD][0] != 1:
        raise ModelLoadError(
            f"{HEAD} of {path} has the shape {shapes[HEAD]}; a reward model has [1, hidden_size]"
        )


def _check_index(path: Path, shapes: Mapping[str, list[int]]) -> None:
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return
    missing = sorted(set(read_json(index).get("weight_map", {})) - set(shapes))
    if missing:
        raise ModelLoadError(
            f"{index} names {len(missing)} tensors that no file in the folder holds, such as "
            f"{missing[0]}; a shard is missing: download the checkpoint again"
        )


def _tensors(file: Path) -> tuple[dict[str, Any], int]:
    """Of each tensor in a file its `shape` and `data_offsets`; and where the data begins."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            tensors = json.loads(stream.read(min(length, size)))
        tensors.pop("__metadata__", None)
        assert all(isinstance(tensor["shape"], list) for tensor in tensors.values())
        end = 8 + length + max((t["data_offsets"][1] for t in tensors.values()), default=0)
    # A damaged header can be anything, and so can the way in which it fails to be read.
    except Exception as error:
        raise ModelLoadError(
            f"{file} is no complete safetensors file ({type(error).__name__}); download it again"
        ) from error
    if size != end:
        raise ModelLoadError(
            f"{file} has {size} bytes, its header promises {end}; it was cut off or changed: "
            "download it again"
        )
    return tensors, 8 + length


def _digest(path: Path) -> str:
    """16 hex digits that change with the configuration and, practically, with any retraining.

    Whole configuration and tokenizer files, and of each weight file its header, the reward head
    and samples spread over it: reading 54 GB in full at every start would take minutes.
    """
    digest = hashlib.sha256()
    for pattern in _TOKENIZER_FILES:
        for file in sorted(path.glob(pattern)):
            digest.update(file.name.encode() + file.read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        digest.update(file.name.encode() + str(file.stat().st_size).encode())
        tensors, start = _tensors(file)
        size = file.stat().st_size
        places = [(size * i // _NUM_SAMPLES, _SAMPLE_BYTES) for i in range(_NUM_SAMPLES)]
        if HEAD in tensors:
            first, last = tensors[HEAD]["data_offsets"]
            places.append((start + first, last - first))
        with file.open("rb") as stream:
            digest.update(stream.read(start))
            for offset, length in places:
                stream.seek(offset)
                digest.update(stream.read(length))
    return digest.hexdigest()[:16]
