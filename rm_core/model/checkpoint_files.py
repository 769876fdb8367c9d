"""Opens files of a checkpoint folder: regular files inside the folder, of a bounded size.

An untrusted folder may contain anything: links to other files of the machine, pipes that block the
process that opens them, headers that declare terabytes. Every file is checked before it is read.
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
from rm_core.strict_json import parse_finite, reject_constant
from rm_core.text import describe_type

TEXT_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt")
"""Configuration, template and tokenizer files."""
TEMPLATES_FOLDER = "additional_chat_templates"
MAX_JSON_BYTES = 8 << 20
"""Maximum size of a JSON file read here; the largest tokenizer_config.json known has 1.2 MB."""
MAX_CONFIG_BYTES = 1 << 20
"""Maximum size of config.json; files of the supported families have 2 KB."""
MAX_TEXT_BYTES = 64 << 20
"""Maximum size of any other text file; Gemma's tokenizer.json has 34 MB."""
MAX_HEADER_BYTES = 8 << 20
"""Maximum size of a safetensors header; the header of a 70B model has 0.1 MB."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_MAX_DIMENSION = 1 << 40


def get_hub_commit(folder: Path) -> str | None:
    """Return the commit of a folder in the hub's cache: models--ORG--NAME/snapshots/COMMIT."""
    in_cache = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if in_cache else None


def check_files(folder: Path) -> None:
    """Refuse a folder with a file that must not be opened."""
    for pattern in (*TEXT_PATTERNS, "*.safetensors"):
        for file in sorted(folder.glob(pattern)):
            check_file(file, None if pattern == "*.safetensors" else MAX_TEXT_BYTES)
    for file in sorted(folder.glob(f"{TEMPLATES_FOLDER}/*")):
        check_file(file, MAX_TEXT_BYTES)


def check_file(file: Path, max_bytes: int | None) -> None:
    """Refuse a file that is not regular, is too large, or is a link to outside the checkpoint.

    A weight file has no maximum size.
    """
    folder = file.parent.parent if file.parent.name == TEMPLATES_FOLDER else file.parent
    try:
        real, status = Path(os.path.realpath(file)), os.stat(file)
    except OSError as error:
        raise ModelLoadError(
            f"{file} cannot be opened ({error.strerror}); is it a link to a file that no longer "
            "exists? Download the checkpoint again"
        ) from error
    if not any(real.is_relative_to(root) for root in _list_allowed_roots(folder)):
        raise ModelLoadError(
            f"{file} is a link to {real}, outside the checkpoint; copy the file into the folder"
        )
    if not stat.S_ISREG(status.st_mode):
        raise ModelLoadError(
            f"{file} is {_describe_file_type(status.st_mode)}, not a regular file; remove it, or "
            "replace it with the right file"
        )
    if max_bytes is not None and status.st_size > max_bytes:
        raise ModelLoadError(
            f"{file} has {status.st_size:,} bytes, and at most {max_bytes:,} are allowed; is it "
            "the right file? Download the checkpoint again"
        )


def _list_allowed_roots(folder: Path) -> Iterator[Path]:
    real = Path(os.path.realpath(folder))
    yield real
    for path in (folder, real):
        # Files of a snapshot in the hub's cache are links into models--ORG--NAME/blobs.
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
    """Read a JSON object from a file of the checkpoint."""
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
            f"{path} contains {describe_type(content)}, not a JSON object; download it again"
        )
    return content


def parse_json(content: bytes) -> Any:
    """Parse strict JSON: UTF-8 without a byte order mark, finite numbers.

    Raises:
        ValueError: the content is not strict JSON.
        RecursionError: the content is nested too deeply.
    """
    return json.loads(content.decode(), parse_constant=reject_constant, parse_float=parse_finite)


def read_tensor_headers(file: Path) -> tuple[dict[str, Any], int]:
    """Read the header of a safetensors file.

    Returns:
        `dtype`, `shape` and `data_offsets` of each tensor by name, and the offset at which the
        data begins, in bytes.
    """
    check_file(file, None)
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MAX_HEADER_BYTES:
                raise ModelLoadError(
                    f"{file} declares a header of {length:,} bytes, and at most "
                    f"{MAX_HEADER_BYTES:,} are allowed; the file is damaged: download it again"
                )
            tensors = parse_json(stream.read(length))
        tensors.pop("__metadata__", None)
        end = 8 + length + max((_get_tensor_end(tensor) for tensor in tensors.values()), default=0)
    except ModelLoadError:
        raise
    # A damaged header can contain anything and fail with any exception.
    except Exception as error:
        raise ModelLoadError(
            f"{file} is not a complete safetensors file ({type(error).__name__}); download it again"
        ) from error
    if size != end:
        raise ModelLoadError(
            f"{file} has {size} bytes, but its header declares {end}; the file is truncated or "
            "modified: download it again"
        )
    return tensors, 8 + length


def _get_tensor_end(tensor: dict[str, Any]) -> int:
    """Return the offset at which a tensor's bytes end, after checking its shape and offsets."""
    shape, (first, last) = tensor["shape"], tensor["data_offsets"]
    numbers = (*shape, first, last)
    if not all(type(n) is int and 0 <= n < _MAX_DIMENSION for n in numbers):
        raise ValueError("sizes must be non-negative integers")
    if (last - first) * 8 != math.prod(shape) * _DTYPE_BITS[tensor["dtype"]]:
        raise ValueError("the offsets of a tensor do not match its shape")
    return int(last)
