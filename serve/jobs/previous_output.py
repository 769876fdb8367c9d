"""Recognize outputs of earlier jobs by the manifests next to them."""

from __future__ import annotations

from pathlib import Path

from serve.errors import JobRefusedError
from serve.jobs.chunk_files import CorruptStateError
from serve.jobs.inputs.scan import FileDigest
from serve.jobs.inputs.storage import compute_prefix_sha256
from serve.jobs.manifest import Manifest
from serve.jobs.state import manifest_path


def find_result_columns(file: FileDigest) -> frozenset[str]:
    """Return the result columns of a file that is the unchanged output of a job, else no columns.

    Args:
        file: file of an input.
    """
    path = Path(file.path)
    try:
        manifest = Manifest.read(manifest_path(path))
    except (CorruptStateError, JobRefusedError, OSError, KeyError, TypeError):
        return frozenset()
    if manifest is None or manifest.completion is None or manifest.completion.size != file.size:
        return frozenset()
    is_whole = file.num_hashed_bytes == file.size
    digest = file.sha256 if is_whole else compute_prefix_sha256(file.path, file.size)
    return (
        manifest.scan.names.result_columns if digest == manifest.completion.sha256 else frozenset()
    )
