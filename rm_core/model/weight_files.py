"""Finds and reads the weight files of a checkpoint: safetensors, or pickle files where allowed.

A pickle file can run code when it is opened. Pickle files are therefore read by torch's restricted
unpickler, which creates tensors and nothing else, and only if the catalog knows the checkpoint as
published in this form or the setting `allow_bin` is on.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_core.errors import ModelLoadError
from rm_core.model.checkpoint_files import check_file, read_json, read_tensor_headers
from rm_core.text import format_names

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

BIN_PATTERNS = ("pytorch_model*.bin", "value_head.bin")
"""Pickle files of weights; other pickle files are never opened."""
OTHER_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
"""Names of pickle files, to explain what a folder has instead of weights."""
_SAFETENSORS, _BIN = "model.safetensors", "pytorch_model.bin"
VALUE_HEADS = ("value_head.safetensors", "value_head.bin")
"""Written by LLaMA-Factory next to the weights; the tensors' names may lack the prefix."""
_VALUE_HEAD_PREFIX = "v_head."
# In the words of safetensors, and of torch.
_WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")
_SAMPLE_BYTES, _NUM_SAMPLES = 1 << 16, 64
_CONVERT_REMEDY = "; or convert them once with `skyreward convert`"


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files from which a model's tensors are read."""

    files: tuple[Path, ...]  # files of the decoder, all of one format
    # File with the value head alone; None if the checkpoint has no such file.
    value_head: Path | None

    @property
    def is_pickle(self) -> bool:
        """Whether the decoder's weights are in pickle files."""
        return any(file.suffix == ".bin" for file in self.files)

    def read_shapes(self) -> dict[str, list[int]]:
        """Return the shape of each tensor by its name; no weights are read."""
        shapes: dict[str, list[int]] = {}
        for file in self.files:
            shapes |= _read_shapes(file)
        if self.value_head is not None:
            head = {_add_prefix(name): s for name, s in _read_shapes(self.value_head).items()}
            if twice := sorted(shapes.keys() & head):
                raise ModelLoadError(
                    f"{self.value_head} and the other weights both have {format_names(twice, 3)}, "
                    "so the intended head is ambiguous; remove one of the two"
                )
            shapes |= head
        return shapes

    def read_tensors(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Read some tensors on the CPU, in the dtype of the files."""
        tensors: dict[str, torch.Tensor] = {}
        for file in self.files:
            tensors |= _read_tensors(file, {name: name for name in names})
        if self.value_head is not None:
            stored = {name: _add_prefix(name) for name in _read_shapes(self.value_head)}
            tensors |= _read_tensors(
                self.value_head, {name: full for name, full in stored.items() if full in names}
            )
        return tensors


def _add_prefix(name: str) -> str:
    return name if name.startswith(_VALUE_HEAD_PREFIX) else _VALUE_HEAD_PREFIX + name


def find_weight_files(path: Path, *, allow_bin: bool, remedy: str = _CONVERT_REMEDY) -> WeightFiles:
    """Find the weight files of a checkpoint.

    `remedy` ends the error where pickle files may not be read.
    """
    value_head = find_value_head(path, allow_bin=allow_bin, remedy=remedy)
    names = [file.name for file in sorted(path.glob("*.safetensors"))]
    names = [name for name in names if name not in VALUE_HEADS]
    suffix, single = ".safetensors", _SAFETENSORS
    if not names:
        names = [file.name for file in sorted(path.glob(BIN_PATTERNS[0]))]
        if not names or not allow_bin:
            raise ModelLoadError(_explain_missing_weights(path, names, remedy))
        suffix, single = ".bin", _BIN
    index = path / f"{single}.index.json"
    if single in names:
        if len(names) > 1:
            others = [name for name in names if name != single]
            logger.warning(
                "%s has %s and %s; only %s is read: remove it if it is outdated",
                path,
                ", ".join(others[:3]) + (" and more" if len(others) > 3 else ""),
                single,
                single,
            )
        return WeightFiles((path / single,), value_head)
    if not index.exists():
        raise ModelLoadError(
            f"{path} has {', '.join(names[:3])}, but neither {single} nor {index.name}, which "
            "lists the files of a sharded checkpoint; download the checkpoint again"
        )
    listed = set(_read_index(index, suffix).values())
    return WeightFiles(tuple(path / name for name in names if name in listed), value_head)


def find_value_head(path: Path, *, allow_bin: bool, remedy: str = _CONVERT_REMEDY) -> Path | None:
    """Return the file of a checkpoint or an adapter that has the value head alone, or None."""
    file = next((path / name for name in VALUE_HEADS if (path / name).exists()), None)
    if file is not None and file.suffix == ".bin" and not allow_bin:
        raise ModelLoadError(
            f"{path} has its head in {file.name}, a pickle file, which is read only if the setting "
            f"`allow_bin` is on (--allow-bin){remedy}"
        )
    return file


def list_tensor_names(path: Path) -> Collection[str] | None:
    """Return the names of the tensors in the index, or in the header of the single file.

    None if the folder has neither, or has a separate file for its head. Pickle files are not read.
    """
    if any((path / name).exists() for name in VALUE_HEADS):
        return None
    if (path / _SAFETENSORS).exists():
        return _read_shapes(path / _SAFETENSORS)
    index = path / f"{_SAFETENSORS}.index.json"
    return _read_index(index, ".safetensors") if index.exists() else None


def check_index(path: Path, files: WeightFiles, shapes: Mapping[str, list[int]]) -> None:
    """Refuse a sharded checkpoint whose files lack a tensor that its index lists."""
    suffix, single = (".bin", _BIN) if files.is_pickle else (".safetensors", _SAFETENSORS)
    index = path / f"{single}.index.json"
    if (path / single).exists():
        return
    missing = sorted(set(_read_index(index, suffix)) - set(shapes))
    if missing:
        raise ModelLoadError(
            f"{index} lists {len(missing)} tensors that no file in the folder contains, such as "
            f"{missing[0]}; a shard is missing: download the checkpoint again"
        )


def _explain_missing_weights(path: Path, names: list[str], remedy: str) -> str:
    if names:
        return (
            f"{path} has only {format_names(names, 3)}; pickle files are read only if the setting "
            "`allow_bin` is on (--allow-bin), or if the catalogue knows the checkpoint as "
            f"published so. Their tensors are read without running code{remedy}"
        )
    pickles = sorted(file.name for pattern in OTHER_PICKLES for file in path.glob(pattern))
    contents = f"only {', '.join(pickles)}" if pickles else "no weight files"
    return (
        f"{path} has {contents}; only safetensors files are loaded, or pytorch_model*.bin with the "
        "setting `allow_bin`. Give the full reward model (save_pretrained of transformers writes "
        "safetensors)"
    )


def _read_index(index: Path, suffix: str) -> dict[str, str]:
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise ModelLoadError(
            f"{index} has no weight_map object, which maps each tensor to its file; download the "
            "checkpoint again"
        )
    for name, file in mapping.items():
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\\0]+" + re.escape(suffix), file):
            raise ModelLoadError(
                f"{index} maps {name[:80]} to {file!r:.80}; the value must be the name of a "
                f"{suffix.removeprefix('.')} file in the folder: download the checkpoint again"
            )
    return mapping


def load_pickle(file: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a pickle file, which stay in the file until they are used."""
    import torch

    check_file(file, None)
    _refuse_compressed(file)
    try:
        tensors = torch.load(file, weights_only=True, mmap=True, **options)
    # A file of another format, or a hostile one, may fail with any exception.
    except Exception as error:
        raise ModelLoadError(
            f"{file} cannot be read without running code ({_summarize_load_error(error)}); is it a "
            "file of weights, written by torch 1.6 or newer? Give safetensors"
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in tensors.items()
    ):
        raise ModelLoadError(
            f"{file} is not a mapping of names to tensors; is it a file of weights? Give "
            "safetensors"
        )
    device = options.get("map_location", "cpu")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != device:
            raise ModelLoadError(
                f"{name:.120} of {file} is a sparse, quantized or empty tensor; give a checkpoint "
                "of ordinary tensors, in safetensors"
            )
    num_bytes, size = sum(tensor.nbytes for tensor in tensors.values()), file.stat().st_size
    if num_bytes > 2 * size:  # tensors may share memory, such as tied embeddings
        raise ModelLoadError(
            f"the tensors of {file} take {num_bytes:,} bytes, and the file has {size:,}: they "
            "repeat a part of it; give safetensors, which have every number once"
        )
    return dict(tensors)


def _refuse_compressed(file: Path) -> None:
    """Refuse an archive with compressed files: torch writes none, and maps them as they are."""
    try:
        with zipfile.ZipFile(file) as archive:
            items = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError):  # torch's own message says more
        return
    compressed = [item.filename for item in items if item.compress_type != zipfile.ZIP_STORED]
    if compressed:
        raise ModelLoadError(
            f"{file} has compressed files, such as {compressed[0]:.120}; torch.save compresses "
            "none, and they may be of any size: download the checkpoint again"
        )


def _summarize_load_error(error: Exception) -> str:
    """Return the class of an error of torch.load and its reason, which comes after advice."""
    advice, *others = str(error).strip().split("\n\n") or [""]
    reason = others[0] if others and isinstance(error, pickle.UnpicklingError) else advice
    return f"{type(error).__name__}: {(reason.strip().splitlines() or ['no reason given'])[0]:.200}"


def _read_shapes(file: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor by its name; refuse weights that are not floating-point."""
    if file.suffix == ".bin":
        tensors = load_pickle(file, map_location="meta")
        dtypes = {name: str(t.dtype).removeprefix("torch.") for name, t in tensors.items()}
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    else:
        headers = read_tensor_headers(file)[0]
        dtypes = {name: header["dtype"] for name, header in headers.items()}
        shapes = {name: header["shape"] for name, header in headers.items()}
    for name, dtype in dtypes.items():
        if name.endswith(".weight") and dtype not in _WEIGHT_DTYPES:
            raise ModelLoadError(
                f"{name:.120} of {file} has the dtype {dtype}; weights are float32, float16 or "
                "bfloat16, and numbers of a quantized checkpoint mean nothing without its scales: "
                "give the unquantized checkpoint"
            )
    return shapes


def _read_tensors(file: Path, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Read the tensors of `names`, which gives each its new name; others are left out."""
    if file.suffix == ".bin":
        tensors = load_pickle(file, map_location="cpu")
        return {new: tensors[name].clone() for name, new in names.items() if name in tensors}
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        return {
            new: stored.get_tensor(name)
            for name, new in names.items()
            if name in set(stored.keys())
        }


def update_digest(digest: hashlib._Hash, file: Path, heads: Collection[str]) -> None:
    """Add a weight file to a digest, without reading all of it: 54 GB would take minutes.

    Of a safetensors file: the header, the heads and samples spread over the file. Of a pickle file:
    the checksums of its tensors, which its table of contents has, and samples. The heads are read
    in full.
    """
    check_file(file, None)
    size = file.stat().st_size
    digest.update(file.name.encode() + str(size).encode())
    ranges = [(size * i // _NUM_SAMPLES, _SAMPLE_BYTES) for i in range(_NUM_SAMPLES)]
    if file.suffix == ".bin":
        start = 0
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for item in archive.infolist():
                    digest.update(f"{item.filename} {item.file_size} {item.CRC}".encode())
    else:
        tensors, start = read_tensor_headers(file)
        for name in heads:
            if name in tensors:
                first, last = tensors[name]["data_offsets"]
                ranges.append((start + first, last - first))
    with file.open("rb") as stream:
        digest.update(stream.read(start))
        for offset, length in ranges:
            stream.seek(offset)
            digest.update(stream.read(length))
