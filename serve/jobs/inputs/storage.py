"""Where files are: the only module of the inputs that opens, lists and measures files.

Names without a scheme are local paths. Any other address, such as `memory://in.jsonl`, is opened by
the file system of `fsspec` for its scheme.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import fsspec
import pyarrow as pa

from serve.errors import JobInputError

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of the input as it was when it was measured.

    Attributes:
        path: absolute path, or address.
        size: size in bytes; -1 if the file does not exist.
        mtime_ns: modification time in nanoseconds.
    """

    path: str
    size: int
    mtime_ns: int


def is_remote(name: str) -> bool:
    """Return whether a name is an address with a scheme instead of a local path."""
    return "://" in name


def open_file(path: str) -> IO[bytes]:
    """Open a regular file to read its stored bytes."""
    if is_remote(path):
        system, name = _find_file_system(path)
        return cast(IO[bytes], system.open(name, "rb"))
    if not os.path.isfile(path):
        raise JobInputError(f"{path} is not a regular file; save its content to a file")
    return open(path, "rb", buffering=_BLOCK_BYTES)


def open_arrow_file(path: str) -> pa.NativeFile:
    """Open a file for the readers of Arrow."""
    return pa.PythonFile(open_file(path), "r") if is_remote(path) else pa.OSFile(path)


def is_file(path: str) -> bool:
    """Return whether there is a regular file; a pipe is not one."""
    if is_remote(path):
        system, name = _find_file_system(path)
        return bool(system.isfile(name))
    return os.path.isfile(path)


def measure_file(path: str) -> InputFile:
    """Return size and modification time of a file."""
    try:
        if is_remote(path):
            system, name = _find_file_system(path)
            modified = system.modified(name)
            return InputFile(path, int(system.size(name)), int(modified.timestamp() * 1e9))
        status = os.stat(path)
    except OSError:
        return InputFile(path, -1, -1)
    return InputFile(str(Path(path).absolute()), status.st_size, status.st_mtime_ns)


def list_folder(folder: str) -> list[str]:
    """Return the relative names of all files below a folder, sorted; links are not followed."""
    if is_remote(folder):
        system, name = _find_file_system(folder)
        return sorted(os.path.relpath(file, name) for file in system.find(name))
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def is_folder(name: str) -> bool:
    """Return whether there is a folder."""
    if is_remote(name):
        system, path = _find_file_system(name)
        return bool(system.isdir(path))
    return os.path.isdir(name)


def expand_glob(pattern: str) -> list[str]:
    """Return the files that match a pattern, sorted."""
    if is_remote(pattern):
        system, path = _find_file_system(pattern)
        return sorted(system.unstrip_protocol(file) for file in system.glob(path))
    return [file for file in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(file)]


def compute_sha256(path: str, num_bytes: int = sys.maxsize) -> str:
    """Return the hexadecimal SHA-256 of a file, or of its first `num_bytes` bytes."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while num_bytes > 0 and (block := file.read(min(num_bytes, _BLOCK_BYTES))):
            digest.update(block)
            num_bytes -= len(block)
    return digest.hexdigest()


def _find_file_system(address: str) -> tuple[Any, str]:
    try:
        return cast(tuple[Any, str], fsspec.url_to_fs(address))
    except (ValueError, ImportError) as error:
        raise JobInputError(f"{address} cannot be opened: {error}") from error
