"""What a job is pinned to: its input, its model, its options. A change of any is refused.

The manifest is the first file of a job and the last that stays: once the output is whole it says
so, with the figures and the output's digest. Should it be damaged, nothing is lost, since chunks
carry the digest of the pins too: see `Manifest.job_id`.
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
from serve.jobs.inputs.source import InputFile
from serve.jobs.row_results import ResultNames
from serve.jobs.summary import Summary

VERSION = 2


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a job.

    Attributes:
        size: of the output, in bytes.
        mtime_ns: of the output; while it is this, the digest need not be made again.
        sha256: of the output.
        summary: the figures of the whole job.
    """

    size: int
    mtime_ns: int
    sha256: str
    summary: Summary


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        survey: of the input.
        model: the carrier's identity.
        options: by the names that a person gives them; as plain JSON data.
        asked: how the model was asked for; may change where `model` does not.
        done: None while the job runs.
    """

    scan: InputScan
    model: dict[str, Any]
    options: dict[str, Any]
    model_spec: dict[str, Any]
    completion: Completion | None = None

    @property
    def job_id(self) -> str:
        """Digest of all that must stay the same; names the job in what it keeps."""
        files = [(f.path, f.size, f.sha256, f.num_hashed_bytes) for f in self.scan.files]
        plain = json.dumps([VERSION, files, self.model, self.options], sort_keys=True)
        return hashlib.sha256(plain.encode()).hexdigest()[:32]

    def write(self, path: Path) -> None:
        """Keep it, durably."""
        plain = {
            "version": VERSION,
            "input": _plain_survey(self.scan),
            "model": self.model,
            "options": self.options,
            "asked": self.model_spec,
            "done": self.completion and _plain_done(self.completion),
        }
        text = json.dumps(plain, indent=1, sort_keys=True)
        write_atomically(path, f"{text}\n{_digest(text)}\n".encode())

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """What `write` kept; None if there is none.

        Raises:
            DamagedError: the file is not whole.
            JobRefusedError: another version of the program wrote it.
        """
        try:
            text, _, digest = read_regular_file(path).decode().rstrip("\n").rpartition("\n")
            if _digest(text) != digest:
                raise CorruptStateError("its digest is wrong")
            plain = json.loads(text)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CorruptStateError(f"it is not whole ({error})") from error
        if plain["version"] != VERSION:
            raise JobRefusedError(
                f"{path} is of version {plain['version']} and this program writes {VERSION}; "
                "finish the job with the program that began it, or start afresh with --overwrite"
            )
        done = plain["done"]
        return cls(
            scan=_survey(plain["input"]),
            model=plain["model"],
            options=plain["options"],
            model_spec=plain["asked"],
            completion=done
            and Completion(**{**done, "summary": Summary.from_json(done["summary"])}),
        )


def require_compatible(
    manifest: Manifest,
    files: Sequence[InputFile],
    model: dict[str, Any] | None,
    options: dict[str, Any],
) -> None:
    """Return if a job is what it was when it began.

    Args:
        kept: how it began.
        files: the input now.
        model: the carrier's identity now; None where it need not be known.
        options: those given now.

    Raises:
        JobRefusedError: names everything that changed.
    """
    limited = manifest.options.get("limit") is not None
    changes = [
        *find_input_changes(manifest.scan.files, files, has_limit=limited),
        *(_changes(manifest.model, model, "the model's {}") if model is not None else ()),
        *_changes(manifest.options, options, "--{}"),
    ]
    if changes:
        raise JobRefusedError(
            f"the job of this output was begun differently: {'; '.join(changes)}."
            " Give the same again to go on with it, another output, or --overwrite to start afresh"
        )


def find_input_changes(
    previous: Sequence[FileDigest], current: Sequence[InputFile], *, has_limit: bool
) -> list[str]:
    """How the input differs from what it was.

    Args:
        kept: the files as they were pinned.
        now: the files as they are.
        limited: whether files may follow that were not read.
    """
    before, after = [file.path for file in previous], [str(file.path) for file in current]
    if has_limit:
        after = after[: len(before)]
    if before != after:
        gone = [f"{path} is gone" for path in before if path not in set(after)]
        new = [f"{path} is new" for path in after if path not in set(before)]
        return [*gone[:3], *new[:3]] or ["the order of the input's files changed"]
    return [
        f"{pinned.path} had {pinned.size} bytes and has {file.size}"
        if pinned.size != file.size
        else f"the content of {pinned.path} changed"
        for pinned, file in zip(previous, current, strict=False)
        if not is_unchanged(pinned, file)
    ][:3]


def _changes(kept: dict[str, Any], now: dict[str, Any], called: str) -> list[str]:
    return [
        f"{called.format(name.replace('_', '-'))} was {_short(kept.get(name))} and is "
        f"{_short(now.get(name))}"
        for name in sorted(kept.keys() | now.keys())
        if kept.get(name) != now.get(name)
    ]


def _short(value: Any) -> str:
    text = "not given" if value is None else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain_done(done: Completion) -> dict[str, Any]:
    return {
        "size": done.size,
        "mtime_ns": done.mtime_ns,
        "sha256": done.sha256,
        "summary": done.summary.as_json(),
    }


def _plain_survey(survey: InputScan) -> dict[str, Any]:
    schema = survey.schema
    return {
        "num_rows": survey.num_rows,
        "num_bytes": survey.num_bytes,
        "files": [asdict(file) for file in survey.files],
        "schema": None
        if schema is None
        else base64.b64encode(schema.serialize().to_pybytes()).decode(),
        "shapes": sorted(survey.kinds),
        "renamed": dict(survey.names.renames),
        "replaced": sorted(survey.names.replaced_columns),
    }


def _survey(plain: dict[str, Any]) -> InputScan:
    schema = plain["schema"]
    return InputScan(
        num_rows=plain["num_rows"],
        num_bytes=plain["num_bytes"],
        files=tuple(FileDigest(**file) for file in plain["files"]),
        schema=schema and pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema))),
        kinds=frozenset(plain["shapes"]),
        names=ResultNames(plain["renamed"], frozenset(plain["replaced"])),
    )
