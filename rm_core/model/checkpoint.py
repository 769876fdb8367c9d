"""Finds a checkpoint and checks everything that can be checked before its weights are read.

The module finds the folder (the demo model, a local path, or a download from the hub at a pinned
revision), reads configuration files and the names and shapes of tensors, and refuses checkpoints
that would score wrongly. It imports torch only for pickle files, so that a process that only
tokenizes, or only checks a checkpoint before a start, pays little.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_core.catalog.entries import CatalogEntry, find_entry, seeds_dir
from rm_core.config import ModelConfig
from rm_core.errors import ModelLoadError
from rm_core.heads.layout import SCORE, HeadLayout, check_labels, choose_layout
from rm_core.kinds import KindChoice, choose_kind
from rm_core.model.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, read_adapter
from rm_core.model.checkpoint_files import (
    TEMPLATES_FOLDER,
    TEXT_PATTERNS,
    check_files,
    get_hub_commit,
    read_json,
)
from rm_core.model.config_file import check_config, read_config
from rm_core.model.rope_limits import PositionLimit, read_position_limit
from rm_core.model.vision_config import VisionConfig, merge_text_config, read_vision_config
from rm_core.model.weight_files import (
    BIN_PATTERNS,
    OTHER_PICKLES,
    VALUE_HEADS,
    WeightFiles,
    check_index,
    find_weight_files,
    update_digest,
)

logger = logging.getLogger(__name__)

_EMBEDDING = "embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with a reward model that passed every check except reading all its weights."""

    path: Path  # local folder
    revision: str  # commit of the hub repository, or `local-` and a digest of the files
    family: str  # `model_type` of the decoder
    # Content of config.json; of a vision-language model, with the keys of its text decoder at the
    # top.
    config: Mapping[str, Any]
    # Catalog entry of the checkpoint; None for a checkpoint that is not in the catalog.
    entry: CatalogEntry | None
    kind: KindChoice  # what the checkpoint is served as
    # Shapes of the tensors that will be read, by name; empty when only the tokenizer was requested.
    shapes: Mapping[str, Sequence[int]]
    files: WeightFiles | None  # files of the tensors; None when only the tokenizer was requested
    # Where the checkpoint has its head; None when only the tokenizer was requested.
    head: HeadLayout | None
    # Settings that change the head, as text; empty for the checkpoint's own head.
    head_settings: str = ""
    adapter: Adapter | None = None  # adapter that is merged into the weights; None without one
    # How images become tokens; None for a model that reads text only.
    vision: VisionConfig | None = None

    @property
    def identity(self) -> str:
        """What decides the weights: the revision, that of the adapter, and settings of the head."""
        adapter = f"+{self.adapter.revision}" if self.adapter else ""
        return f"{self.revision}{adapter}{self.head_settings}"

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
        """Return whether the chat template, or `chat_template` in its place, may read the clock.

        In doubt, return True.
        """
        files = [Path(chat_template).expanduser()] if chat_template else self._list_template_files()
        return any(file.is_file() and b"strftime_now" in file.read_bytes() for file in files)

    def _list_template_files(self) -> list[Path]:
        names = ("chat_template.jinja", "tokenizer_config.json", "chat_template.json")
        return [*(self.path / n for n in names), *self.path.glob(f"{TEMPLATES_FOLDER}/*")]


def open_checkpoint(config: ModelConfig, *, weights: bool = True) -> Checkpoint:
    """Find a checkpoint, download it if necessary, and check it.

    Args:
        config: `name`, `revision`, `catalog_name`, and the settings of the kind, the head and
            pickle files are read.
        weights: False for a process that only tokenizes: no weight file is fetched or opened.

    Raises:
        ModelLoadError: the checkpoint does not exist or would score wrongly.
    """
    base, adapter_name = split_name(config.name)
    entry, allow_bin = _find_entry(config, base)
    if adapter_name is not None:
        entry = None  # its golden rewards and published results are those of other weights
    path = _locate(base, config.revision, weights, allow_bin)
    check_files(path)
    if adapter_name is not None:
        _refuse_reversed_order(path, config, base, adapter_name)
    _refuse_adapter(path)
    model_config = merge_text_config(path / "config.json", read_config(path))
    family = check_config(path / "config.json", model_config)
    vision = read_vision_config(path, model_config)
    kind = choose_kind(config, model_config, entry)
    check_labels(path, kind, config, model_config)
    adapter = _open_adapter(path, base, adapter_name, weights, allow_bin) if adapter_name else None
    shapes: dict[str, list[int]] = {}
    files = head = None
    if weights:
        files = find_weight_files(path, allow_bin=allow_bin)
        shapes = files.read_shapes()
        check_index(path, files, shapes)
        all_shapes = {**shapes, **(adapter.head_shapes if adapter else {})}
        head = choose_layout(path, all_shapes, kind, config, model_config)
    return Checkpoint(
        path=path,
        revision=get_hub_commit(path) or f"local-{_digest(path)}",
        family=family,
        config=model_config,
        entry=entry,
        kind=kind,
        shapes=shapes,
        files=files,
        head=head,
        head_settings=_format_head_settings(config),
        adapter=adapter,
        vision=vision,
    )


def open_weight_files(config: ModelConfig) -> tuple[Path, WeightFiles]:
    """Find a checkpoint's folder and its weight files to convert them, whatever the model is."""
    base, adapter = split_name(config.name)
    if adapter is not None:
        raise ModelLoadError(f"{config.name} has an adapter; give the base model alone")
    _, allow_bin = _find_entry(config, base)
    path = _locate(base, config.revision, True, allow_bin)
    check_files(path)
    _refuse_adapter(path)
    return path, find_weight_files(path, allow_bin=allow_bin, remedy="; give that option")


def open_text_files(name: str) -> tuple[Path, str]:
    """Return the folder of a model's configuration and tokenizer files, and 16 digits of a hash.

    Args:
        name: `demo`, a folder or a hub id; NAME@REVISION for a revision of a hub id.

    Raises:
        ModelLoadError: the folder does not exist, or the files cannot be downloaded.
    """
    base, _, revision = (name, "", "") if find_local_folder(name) else name.partition("@")
    path = _locate(base, revision or None, weights=False, allow_bin=False)
    return path, _digest_text_files(path).hexdigest()[:16]


def _find_entry(config: ModelConfig, base: str) -> tuple[CatalogEntry | None, bool]:
    """Return the catalog entry, and whether pickle files may be read."""
    entry = find_entry(base) or (find_entry(config.catalog_name) if config.catalog_name else None)
    published_in_bin = getattr(entry, "weights_in_bin", None)
    return entry, config.allow_bin or bool(published_in_bin and published_in_bin.value)


def split_name(name: str) -> tuple[str, str | None]:
    """Return the base of `BASE+ADAPTER`, and the adapter; None for a name without an adapter."""
    if "+" not in name or find_local_folder(name) is not None:
        return name, None
    base, _, adapter = name.partition("+")
    if not base.strip() or not adapter.strip() or "+" in adapter:
        raise ModelLoadError(
            f"the name {name!r:.200} has `+`; give BASE+ADAPTER, each a folder or a hub id "
            "(ORG/NAME), or an existing folder"
        )
    return base, adapter


def _format_head_settings(config: ModelConfig) -> str:
    """Return the settings that choose another head than the checkpoint's own."""
    settings: dict[str, object] = {
        "label": config.label,
        "label_weights": config.label_weights,
        "lm_head_tokens": config.lm_head_tokens,
    }
    if config.verdict_prefix != "[[" or config.verdict_labels != ("A", "B"):
        settings["verdict"] = (config.verdict_prefix, *config.verdict_labels)
    return "".join(f";{name}={value}" for name, value in settings.items() if value is not None)


def _open_adapter(base: Path, base_name: str, name: str, weights: bool, allow_bin: bool) -> Adapter:
    name, _, revision = (name, "", "") if find_local_folder(name) else name.partition("@")
    path = _locate(name, revision or None, weights, allow_bin)
    check_files(path)
    return read_adapter(
        path,
        base,
        base_name=base_name,
        revision=get_hub_commit(path) or f"local-{_digest(path)}",
        allow_bin=allow_bin,
        weights=weights,
    )


def find_local_folder(name: str) -> Path | None:
    """Return the absolute path of the existing folder that `name` refers to, or None."""
    try:
        path = Path(name).expanduser()
        return path.resolve() if name.strip() and path.is_dir() else None
    # The name is too long, has the `~` of an unknown user, or contains a null character.
    except (OSError, RuntimeError, ValueError):
        return None


def _locate(name: str, revision: str | None, weights: bool, allow_bin: bool) -> Path:
    if name == "demo":
        if revision is not None:
            raise ModelLoadError("the embedded model `demo` has no revisions; omit the revision")
        return seeds_dir() / "demo"
    path = find_local_folder(name)
    if path is not None:
        if revision is not None and revision != get_hub_commit(path):
            raise ModelLoadError(
                f"revision {revision!r} was requested, but {name} is a local folder; "
                "omit the revision, or give a hub id"
            )
        return path
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise ModelLoadError(
            f"folder {name!r} does not exist; give `demo`, an existing folder or a hub id "
            "(ORG/NAME)"
        )
    patterns = [*TEXT_PATTERNS, *(("*.safetensors",) if weights else ())]
    if weights and allow_bin:
        patterns.append(VALUE_HEADS[1])
    path = _download(name, revision, patterns)
    if weights and allow_bin and not any(path.glob("*model*.safetensors")):
        path = _download(name, revision, [*patterns, *BIN_PATTERNS, "adapter_model.bin"])
    return path


def _download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import constants, snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(patterns),
                # huggingface-hub 1.33 asks the hub for the files of a commit even when offline.
                local_files_only=constants.HF_HUB_OFFLINE,
            )
        )
    # The hub's client raises errors of several libraries; all mean that the download failed.
    except Exception as error:
        at_revision = f" at revision {revision!r}" if revision else ""
        raise ModelLoadError(
            f"{name!r} is not a local folder and could not be downloaded from the hub"
            f"{at_revision}: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}; "
            "check the name, the revision, the network and HF_TOKEN, or give a local folder"
        ) from error


def _refuse_reversed_order(path: Path, config: ModelConfig, base: str, adapter: str) -> None:
    """Refuse ADAPTER+BASE."""
    second = find_local_folder(adapter)
    if (
        not (path / ADAPTER_CONFIG).exists()
        or _has_weights(path)
        or (second is not None and (second / ADAPTER_CONFIG).exists())
    ):
        return
    revision = f"@{config.revision}" if config.revision else ""
    raise ModelLoadError(
        f"the order of {config.name} is reversed: {base} is an adapter, and the base model comes "
        f"first, BASE+ADAPTER; give {adapter}+{base}{revision}"
    )


def _refuse_adapter(path: Path) -> None:
    """Refuse an adapter, alone or next to full weights: the intended model is ambiguous."""
    adapter_files = [name for name in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS) if (path / name).exists()]
    if not adapter_files:
        return
    adapter_config = read_json(path / ADAPTER_CONFIG) if ADAPTER_CONFIG in adapter_files else {}
    kind = adapter_config.get("peft_type") or "PEFT"
    base = adapter_config.get("base_model_name_or_path")
    base = f"{base!r:.200}" if base else "an unnamed base model"
    if (path / "config.json").exists() and _has_weights(path):
        raise ModelLoadError(
            f"{path} has full weights and a {kind!s:.40} adapter for {base} "
            f"({', '.join(adapter_files)}), so the intended model is ambiguous; remove the "
            "adapter's files, or put them into another folder and give FOLDER+ADAPTER_FOLDER"
        )
    raise ModelLoadError(
        f"{path} is a {kind!s:.40} adapter for {base} ({', '.join(adapter_files)}), not a full "
        "reward model; give BASE+ADAPTER, the base model and this folder, which are merged when "
        "they are loaded (needs peft)"
    )


def _has_weights(path: Path) -> bool:
    names = {
        file.name for pattern in ("*.safetensors", *OTHER_PICKLES) for file in path.glob(pattern)
    }
    return bool(names - {*ADAPTER_WEIGHTS, "training_args.bin"})


def _digest(path: Path) -> str:
    """Return 16 hex digits that change with the configuration and practically any retraining.

    The digest covers configuration and tokenizer files in full, and samples of each weight file.
    """
    digest = _digest_text_files(path)
    files = sorted(path.glob("*.safetensors"))
    if not any("model" in file.name for file in files):
        files += sorted(file for p in (*BIN_PATTERNS, ADAPTER_WEIGHTS[1]) for file in path.glob(p))
    elif (value_head := path / VALUE_HEADS[1]).exists():
        files.append(value_head)
    for file in files:
        update_digest(digest, file, (SCORE, "v_head.summary.weight", "v_head.summary.bias"))
    return digest.hexdigest()[:16]


def _digest_text_files(path: Path) -> hashlib._Hash:
    digest = hashlib.sha256()
    for pattern in TEXT_PATTERNS:
        for file in sorted(path.glob(pattern)):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                hashlib.file_digest(stream, lambda: digest)
    return digest
