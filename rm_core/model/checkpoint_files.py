"""Opens the files of a checkpoint folder: regular, inside the folder, of a bounded size.

A folder from somewhere else may hold anything: links to other files of the machine, pipes that
block whoever opens them, headers that promise terabytes. Everything is checked before it is read.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rm_core.errors import ModelLoadError

TEXT_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt")
"""Configuration, template and tokenizer files."""
TEMPLATES_FOLDER = "additional_chat_templates"
MAX_JSON_BYTES = 8 << 20
"""Of a JSON file that is read here; the largest tokenizer_config.json known has 1.2 MB."""
MAX_CONFIG_BYTES = 1 << 20
"""Of config.json; those of the families that are served have 2 KB."""
MAX_TEXT_BYTES = 64 << 20
"""Of any other text file; Gemma's tokenizer.json has 34 MB."""
MAX_HEADER_BYTES = 8 << 20
"""Of a safetensors header; that of a model of 70B has 0.1 MB."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_MAX_DIMENSION = 1 << 40


def get_hub_commit(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache: models--ORG--NAME/snapshots/COMMIT."""
    in_cache = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if in_cache else None


def check_files(folder: Path) -> None:
    """Refuse a folder with a file that must not be opened.

    Raises:
        ModelLoadError: names the file.
    """
    for pattern in (*TEXT_PATTERNS, "*.safetensors"):
        for file in sorted(folder.glob(pattern)):
            check_file(file, None if pattern == "*.safetensors" else MAX_TEXT_BYTES)
    for file in sorted(folder.glob(f"{TEMPLATES_FOLDER}/*")):
        check_file(file, MAX_TEXT_BYTES)


def check_file(file: Path, max_bytes: int | None) -> None:
    """Return if a file may be opened and read.

    Args:
        file: directly in the checkpoint's folder, or in its folder of templates.
        max_bytes: None for a weight file.

    Raises:
        ModelLoadError: it is no regular file, a link that leaves the checkpoint, or too large.
    """
    folder = file.parent.parent if file.parent.name == TEMPLATES_FOLDER else file.parent
    try:
        real, status = Path(os.path.realpath(file)), os.stat(file)
    except OSError as error:
        raise ModelLoadError(
            f"{file} cannot be opened ({error.strerror}); is it a link to a file that is gone? "
            "Download the checkpoint again"
        ) from error
    if not any(real.is_relative_to(root) for root in _list_allowed_roots(folder)):
        raise ModelLoadError(
            f"{file} is a link to {real}, outside the checkpoint; put a copy of the file into the "
            "folder"
        )
    if not stat.S_ISREG(status.st_mode):
        raise ModelLoadError(
            f"{file} is {_describe_file_type(status.st_mode)}, not a regular file; remove it, or put the file "
            "there that belongs there"
        )
    if max_bytes is not None and status.st_size > max_bytes:
        raise ModelLoadError(
            f"{file} has {status.st_size:,} bytes, and {max_bytes:,} are allowed for such a file; "
            "is it the right one? Download the checkpoint again"
        )


def _list_allowed_roots(folder: Path) -> Iterator[Path]:
    real = Path(os.path.realpath(folder))
    yield real
    for path in (folder, real):
        # Snapshots of the hub's cache are links to models--ORG--NAME/blobs.
        if get_hub_commit(path) and path.parent.parent.name.startswith("models--"):
            yield Path(os.path.realpath(path.parent.parent / "blobs"))


def _describe_file_type(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for test, name in kinds.items() if test(mode)), "something else")


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint.

    Args:
        path: of the file.
        max_bytes: most bytes of it.

    Raises:
        ModelLoadError: missing, unreadable, or not an object.
    """
    if not os.path.lexists(path):
        raise ModelLoadError(f"{path.parent} has no {path.name}; is it a checkpoint?")
    check_file(path, max_bytes)
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ModelLoadError(
            f"{path} cannot be read as JSON: {reason}; download it again, or correct it"
        ) from error
    if not isinstance(content, dict):
        raise ModelLoadError(
            f"{path} holds no JSON object but {_describe_json_type(content)}; download it again"
        )
    return content


def parse_json(content: bytes) -> Any:
    """Strict JSON: UTF-8 without a mark, finite numbers.

    Raises:
        ValueError: it is something else.
        RecursionError: it is nested too deeply.
    """
    return json.loads(content.decode(), parse_constant=_refuse_constant, parse_float=_read_float)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _read_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _describe_json_type(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def read_tensor_headers(file: Path) -> tuple[dict[str, Any], int]:
    """Of each tensor in a safetensors file its `shape` and `data_offsets`; where the data begins.

    Raises:
        ModelLoadError: the file is damaged; its header is larger than `MAX_HEADER_BYTES`.
    """
    check_file(file, None)
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MAX_HEADER_BYTES:
                raise ModelLoadError(
                    f"the header of {file} says that it has {length:,} bytes, and "
                    f"{MAX_HEADER_BYTES:,} are allowed; the file is damaged: download it again"
                )
            tensors = parse_json(stream.read(length))
        tensors.pop("__metadata__", None)
        end = 8 + length + max((_get_tensor_end(tensor) for tensor in tensors.values()), default=0)
    except ModelLoadError:
        raise
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


def _get_tensor_end(tensor: dict[str, Any]) -> int:
    """Where a tensor's bytes end, if its shape and offsets belong together."""
    shape, (first, last) = tensor["shape"], tensor["data_offsets"]
    numbers = (*shape, first, last)
    if not all(type(n) is int and 0 <= n < _MAX_DIMENSION for n in numbers):
        raise ValueError("sizes are whole numbers that are not negative")
    if (last - first) * 8 != math.prod(shape) * _DTYPE_BITS[tensor["dtype"]]:
        raise ValueError("the offsets of a tensor do not fit its shape")
    return int(last)
