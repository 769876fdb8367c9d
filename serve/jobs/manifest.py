"""What a job is pinned to: its input, its model, its options. A change of any is refused.

The manifest is the first file of a job and the last that stays: once the output is whole it says
so, with the figures and the output's digest. Should it be damaged, nothing is lost, since chunks
carry the digest of the pins too: see `Manifest.job`.
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
from serve.jobs.atomic_io import read_regular, write_durably
from serve.jobs.chunk_files import DamagedError
from serve.jobs.inputs.scan import FileDigest, Survey, is_unchanged
from serve.jobs.inputs.source import InputFile
from serve.jobs.row_results import ResultNames
from serve.jobs.summary import Summary

VERSION = 2


@dataclass(frozen=True, slots=True)
class Done:
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

    survey: Survey
    model: dict[str, Any]
    options: dict[str, Any]
    asked: dict[str, Any]
    done: Done | None = None

    @property
    def job(self) -> str:
        """Digest of all that must stay the same; names the job in what it keeps."""
        files = [(f.path, f.size, f.sha256, f.num_hashed_bytes) for f in self.survey.files]
        plain = json.dumps([VERSION, files, self.model, self.options], sort_keys=True)
        return hashlib.sha256(plain.encode()).hexdigest()[:32]

    def write(self, path: Path) -> None:
        """Keep it, durably."""
        plain = {
            "version": VERSION,
            "input": _plain_survey(self.survey),
            "model": self.model,
            "options": self.options,
            "asked": self.asked,
            "done": self.done and _plain_done(self.done),
        }
        text = json.dumps(plain, indent=1, sort_keys=True)
        write_durably(path, f"{text}\n{_digest(text)}\n".encode())

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """What `write` kept; None if there is none.

        Raises:
            DamagedError: the file is not whole.
            JobRefusedError: another version of the program wrote it.
        """
        try:
            text, _, digest = read_regular(path).decode().rstrip("\n").rpartition("\n")
            if _digest(text) != digest:
                raise DamagedError("its digest is wrong")
            plain = json.loads(text)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DamagedError(f"it is not whole ({error})") from error
        if plain["version"] != VERSION:
            raise JobRefusedError(
                f"{path} is of version {plain['version']} and this program writes {VERSION}; "
                "finish the job with the program that began it, or start afresh with --overwrite"
            )
        done = plain["done"]
        return cls(
            survey=_survey(plain["input"]),
            model=plain["model"],
            options=plain["options"],
            asked=plain["asked"],
            done=done and Done(**{**done, "summary": Summary.from_json(done["summary"])}),
        )


def require_same(
    kept: Manifest,
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
    limited = kept.options.get("limit") is not None
    changes = [
        *input_changes(kept.survey.files, files, limited=limited),
        *(_changes(kept.model, model, "the model's {}") if model is not None else ()),
        *_changes(kept.options, options, "--{}"),
    ]
    if changes:
        raise JobRefusedError(
            f"the job of this output was begun differently: {'; '.join(changes)}."
            " Give the same again to go on with it, another output, or --overwrite to start afresh"
        )


def input_changes(
    kept: Sequence[FileDigest], now: Sequence[InputFile], *, limited: bool
) -> list[str]:
    """How the input differs from what it was.

    Args:
        kept: the files as they were pinned.
        now: the files as they are.
        limited: whether files may follow that were not read.
    """
    before, after = [file.path for file in kept], [str(file.path) for file in now]
    if limited:
        after = after[: len(before)]
    if before != after:
        gone = [f"{path} is gone" for path in before if path not in set(after)]
        new = [f"{path} is new" for path in after if path not in set(before)]
        return [*gone[:3], *new[:3]] or ["the order of the input's files changed"]
    return [
        f"{pinned.path} had {pinned.size} bytes and has {file.size}"
        if pinned.size != file.size
        else f"the content of {pinned.path} changed"
        for pinned, file in zip(kept, now, strict=False)
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


def _plain_done(done: Done) -> dict[str, Any]:
    return {
        "size": done.size,
        "mtime_ns": done.mtime_ns,
        "sha256": done.sha256,
        "summary": done.summary.as_json(),
    }


def _plain_survey(survey: Survey) -> dict[str, Any]:
    schema = survey.schema
    return {
        "num_rows": survey.num_rows,
        "num_bytes": survey.num_bytes,
        "files": [asdict(file) for file in survey.files],
        "schema": None
        if schema is None
        else base64.b64encode(schema.serialize().to_pybytes()).decode(),
        "shapes": sorted(survey.shapes),
        "renamed": dict(survey.names.renamed),
        "replaced": sorted(survey.names.replaced),
    }


def _survey(plain: dict[str, Any]) -> Survey:
    schema = plain["schema"]
    return Survey(
        num_rows=plain["num_rows"],
        num_bytes=plain["num_bytes"],
        files=tuple(FileDigest(**file) for file in plain["files"]),
        schema=schema and pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema))),
        shapes=frozenset(plain["shapes"]),
        names=ResultNames(plain["renamed"], frozenset(plain["replaced"])),
    )
