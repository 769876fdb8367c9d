"""The manifest of a job, which pins its input, its model and its options; changes are refused.

The manifest is the first file of a job and the last one that remains: when the output is complete,
it holds the summary and the output's digest. A damaged manifest loses nothing, because chunks carry
the digest of the pinned data too: see `Manifest.job_id`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from serve.errors import JobRefusedError
from serve.jobs.atomic_io import read_regular_file, write_atomically
from serve.jobs.chunk_files import CorruptStateError
from serve.jobs.inputs.scan import FileDigest, InputScan, is_unchanged
from serve.jobs.inputs.storage import InputFile
from serve.jobs.row_results import ResultNames
from serve.jobs.summary import Summary

VERSION = 3


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a job.

    Attributes:
        size: size of the output in bytes.
        mtime_ns: modification time of the output in nanoseconds; the digest is checked only if it
            changed.
        sha256: hexadecimal SHA-256 of the output.
        summary: summary of the whole job.
    """

    size: int
    mtime_ns: int
    sha256: str
    summary: Summary


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        scan: scan of the input.
        model: identity of the executor, as JSON data.
        options: options by their names on the command line, as JSON data.
        model_spec: how the user specified the model; may change while `model` stays the same.
        completion: end of the job; None while the job runs.
    """

    scan: InputScan
    model: dict[str, Any]
    options: dict[str, Any]
    model_spec: dict[str, Any]
    completion: Completion | None = None

    @property
    def job_id(self) -> str:
        """Digest of all pinned data; identifies the job in its files."""
        files = [(f.path, f.size, f.sha256, f.num_hashed_bytes) for f in self.scan.files]
        pinned = json.dumps([VERSION, files, self.model, self.options], sort_keys=True)
        return hashlib.sha256(pinned.encode()).hexdigest()[:32]

    def write(self, path: Path) -> None:
        """Write the manifest durably."""
        content = {
            "version": VERSION,
            "input": _scan_to_json(self.scan),
            "model": self.model,
            "options": self.options,
            "asked": self.model_spec,
            "done": self.completion and _completion_to_json(self.completion),
        }
        text = json.dumps(content, indent=1, sort_keys=True)
        write_atomically(path, f"{text}\n{_digest(text)}\n".encode())

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """Read a manifest; return None if the file does not exist.

        Raises:
            CorruptStateError: the file is damaged.
            JobRefusedError: another version of the program wrote the file.
        """
        try:
            text, _, digest = read_regular_file(path).decode().rstrip("\n").rpartition("\n")
            if _digest(text) != digest:
                raise CorruptStateError("its digest is wrong")
            content = json.loads(text)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CorruptStateError(f"it cannot be parsed ({error})") from error
        if content["version"] != VERSION:
            raise JobRefusedError(
                f"{path} has version {content['version']}, and this program writes version "
                f"{VERSION}; finish the job with the program that began it, or start over with "
                "--overwrite"
            )
        completion = content["done"]
        return cls(
            scan=_scan_from_json(content["input"]),
            model=content["model"],
            options=content["options"],
            model_spec=content["asked"],
            completion=completion
            and Completion(**{**completion, "summary": Summary.from_json(completion["summary"])}),
        )


def require_compatible(
    manifest: Manifest,
    files: Sequence[InputFile],
    model: dict[str, Any] | None,
    options: dict[str, Any],
) -> None:
    """Check that input, model and options are those with which a job began.

    Args:
        manifest: manifest of the job.
        files: files of the input now.
        model: identity of the executor now; None to skip this check.
        options: options given now.

    Raises:
        JobRefusedError: something changed; the message names all changes.
    """
    has_limit = manifest.options.get("limit") is not None
    changes = [
        *find_input_changes(manifest.scan.files, files, has_limit=has_limit),
        *(_changes(manifest.model, model, "the model's {}") if model is not None else ()),
        *_changes(manifest.options, options, "--{}"),
    ]
    if changes:
        raise JobRefusedError(
            f"the job of this output began differently: {'; '.join(changes)}. Use the same input, "
            "model and options to resume the job, give another output, or start over with "
            "--overwrite"
        )


def find_input_changes(
    previous: Sequence[FileDigest], current: Sequence[InputFile], *, has_limit: bool
) -> list[str]:
    """Describe how the files of an input changed, with up to three changes of a kind.

    Args:
        previous: the files as they were pinned.
        current: the files as they are now.
        has_limit: whether more files, which were not read, may follow.
    """
    before, after = [file.path for file in previous], [file.path for file in current]
    if has_limit:
        after = after[: len(before)]
    if before != after:
        removed = [f"{path} was removed" for path in before if path not in set(after)]
        added = [f"{path} is new" for path in after if path not in set(before)]
        return [*removed[:3], *added[:3]] or ["the order of the input's files changed"]
    return [
        f"{pinned.path} had {pinned.size} bytes and has {file.size}"
        if pinned.size != file.size
        else f"the content of {pinned.path} changed"
        for pinned, file in zip(previous, current, strict=False)
        if not is_unchanged(pinned, file)
    ][:3]


def _changes(previous: dict[str, Any], current: dict[str, Any], label: str) -> list[str]:
    return [
        f"{label.format(name.replace('_', '-'))} was {_short(previous.get(name))} and is "
        f"{_short(current.get(name))}"
        for name in sorted(previous.keys() | current.keys())
        if previous.get(name) != current.get(name)
    ]


def _short(value: Any) -> str:
    text = "not given" if value is None else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _completion_to_json(completion: Completion) -> dict[str, Any]:
    return {
        "size": completion.size,
        "mtime_ns": completion.mtime_ns,
        "sha256": completion.sha256,
        "summary": completion.summary.as_json(),
    }


def _scan_to_json(scan: InputScan) -> dict[str, Any]:
    schema = scan.schema
    return {
        "num_rows": scan.num_rows,
        "num_bytes": scan.num_bytes,
        "files": [asdict(file) for file in scan.files],
        "schema": None
        if schema is None
        else base64.b64encode(schema.serialize().to_pybytes()).decode(),
        "shapes": sorted(scan.kinds),
        "renamed": dict(scan.names.renames),
        "replaced": sorted(scan.names.replaced_columns),
    }


def _scan_from_json(content: dict[str, Any]) -> InputScan:
    schema = content["schema"]
    return InputScan(
        num_rows=content["num_rows"],
        num_bytes=content["num_bytes"],
        files=tuple(FileDigest(**file) for file in content["files"]),
        schema=schema and pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema))),
        kinds=frozenset(content["shapes"]),
        names=ResultNames(content["renamed"], frozenset(content["replaced"])),
    )
