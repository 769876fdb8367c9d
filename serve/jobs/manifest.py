"""The manifest of a job, which pins its input, its model and its options; changes are refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from rm_core.config import Kind
from rm_core.text import format_names, shorten
from serve.errors import JobRefusedError
from serve.jobs.inputs.scan import FileDigest, InputScan, is_unchanged
from serve.jobs.row_results import ResultNames
from serve.jobs.spec import JobSpec
from serve.jobs.storage import FileState, InputFile
from serve.jobs.summary import Summary

_LABELS = {"chunk_rows": "the number of rows in a chunk"}
"""How to name what no option of the command line sets."""
_MAX_MODEL_CHANGES = 3


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a job: its summary, and what its output was then.

    The digest (hexadecimal SHA-256) is checked only if the other values changed; see `FileState`.
    """

    size: int
    mtime_ns: int
    sha256: str
    summary: Summary
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a job is pinned to, and its end.

    Attributes:
        scan: scan of the input.
        model: identity of the executor, as JSON data.
        options: options by their names on the command line, as JSON data.
        model_spec: how the user specified the model; may change while `model` stays the same.
        completion: end of the job; None while the job runs.
        output_before: the output when the job began; None if an earlier version began the job.
        scored_by: the model of the rewards and the version of this program, as JSON data; None if
            nothing was scored yet, or by an older version.
    """

    scan: InputScan
    model: dict[str, Any]
    options: dict[str, Any]
    model_spec: dict[str, Any]
    completion: Completion | None = None
    output_before: FileState | None = None
    scored_by: dict[str, Any] | None = None

    @property
    def kind(self) -> Kind:
        """Kind of the model."""
        return get_kind(self.model)

    def as_json(self) -> dict[str, Any]:
        """Return the manifest as JSON data; `from_json` reads it."""
        completion = self.completion
        return {
            "input": _scan_to_json(self.scan),
            "model": self.model,
            "options": self.options,
            "model_spec": self.model_spec,
            "scored_by": self.scored_by,
            "completion": completion
            and {
                "size": completion.size,
                "mtime_ns": completion.mtime_ns,
                "sha256": completion.sha256,
                "summary": completion.summary.as_json(),
                "etag": completion.etag,
            },
            "output_before": self.output_before and asdict(self.output_before),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Manifest:
        """Create a manifest from the data of `as_json`."""
        completion, before = content["completion"], content.get("output_before")
        return cls(
            scan=_scan_from_json(content["input"], get_kind(content["model"])),
            model=content["model"],
            options=content["options"],
            model_spec=content["model_spec"],
            completion=completion
            and Completion(**{**completion, "summary": Summary.from_json(completion["summary"])}),
            output_before=before and FileState(**before),
            scored_by=content.get("scored_by"),
        )


def require_compatible(
    manifest: Manifest,
    files: Sequence[InputFile],
    model: dict[str, Any] | None,
    spec: JobSpec,
) -> None:
    """Check that input, model and options are those with which a job began.

    Args:
        manifest: manifest of the job.
        files: files of the input now.
        model: identity of the executor now; None to skip this check.
        spec: specification of the job now.

    Raises:
        JobRefusedError: something changed; the message names what was and what is.
    """
    has_limit = manifest.options.get("limit") is not None
    changes = find_input_changes(manifest.scan.files, files, has_limit=has_limit)
    if model is not None:
        changes += _find_model_changes(manifest, model, spec)
    changes += _find_changes(manifest.options, spec.options, "--")
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

    With a limit, more files may follow, which were not read.
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


def _find_model_changes(manifest: Manifest, model: dict[str, Any], spec: JobSpec) -> list[str]:
    # What identifies a model in this process and the model of a service cannot be compared.
    if ("fingerprint" in model) != ("fingerprint" in manifest.model):
        return [
            f"rewards came from {_format_model_spec(manifest.model_spec)} and would now come from "
            f"{_format_model_spec(spec.model_spec)}"
        ]
    before, now = (
        {**identity, **identity.get("fingerprint", {}), "fingerprint": None}
        for identity in (manifest.model, model)
    )
    changes = _find_changes(before, now, "the model's ")
    more = len(changes) - _MAX_MODEL_CHANGES
    return [*changes[:_MAX_MODEL_CHANGES], *([f"{more} more of the model"] if more > 0 else [])]


def _format_model_spec(model_spec: Mapping[str, Any]) -> str:
    urls = model_spec.get("urls")
    return f"--url {format_names(urls, 2)}" if urls else f"--model {model_spec.get('model')}"


def _find_changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[str]:
    return [
        f"{_LABELS.get(name, prefix + name.replace('_', '-'))} was "
        f"{_format_value(before.get(name))} and is {_format_value(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _format_value(value: Any) -> str:
    return "not given" if value is None else shorten(json.dumps(value), 80)


def _scan_to_json(scan: InputScan) -> dict[str, Any]:
    schema = scan.schema
    return {
        "num_rows": scan.num_rows,
        "num_bytes": scan.num_bytes,
        "files": [asdict(file) for file in scan.files],
        "schema": None
        if schema is None
        else base64.b64encode(schema.serialize().to_pybytes()).decode(),
        "kinds": sorted(scan.kinds),
        "renamed": dict(scan.names.renames),
        "replaced": sorted(scan.names.replaced_columns),
    }


def get_kind(model: Mapping[str, Any]) -> Kind:
    """Return the kind of a model from the identity of its executor."""
    kind: Kind = model.get("kind", "classifier")
    return kind


def get_max_image_bytes(model: Mapping[str, Any]) -> int | None:
    """Return the maximum size of an image's file, from the identity of an executor.

    None for a model that reads only text.
    """
    num_bytes: int | None = model.get("max_image_bytes")
    return num_bytes


def _scan_from_json(content: dict[str, Any], kind: Kind) -> InputScan:
    schema = content["schema"]
    return InputScan(
        num_rows=content["num_rows"],
        num_bytes=content["num_bytes"],
        files=tuple(FileDigest(**file) for file in content["files"]),
        schema=schema and pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema))),
        kinds=frozenset(content["kinds"]),
        names=ResultNames(content["renamed"], frozenset(content["replaced"]), kind),
    )
