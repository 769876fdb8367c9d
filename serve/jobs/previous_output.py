"""Files that an earlier job wrote, known by what that job keeps beside them."""

from __future__ import annotations

from pathlib import Path

from serve.errors import JobRefusedError
from serve.jobs.chunk_files import CorruptStateError
from serve.jobs.inputs.io import compute_prefix_sha256
from serve.jobs.inputs.scan import FileDigest
from serve.jobs.manifest import Manifest
from serve.jobs.state import manifest_path


def find_result_columns(file: FileDigest) -> frozenset[str]:
    """The columns of results of a file that is the unchanged output of a job; else none.

    Args:
        file: of an input.
    """
    path = Path(file.path)
    try:
        kept = Manifest.read(manifest_path(path))
    except (CorruptStateError, JobRefusedError, OSError, KeyError, TypeError):
        return frozenset()
    if kept is None or kept.completion is None or kept.completion.size != file.size:
        return frozenset()
    is_whole = file.num_hashed_bytes == file.size
    digest = file.sha256 if is_whole else compute_prefix_sha256(path, file.size)
    return kept.scan.names.result_columns if digest == kept.completion.sha256 else frozenset()
