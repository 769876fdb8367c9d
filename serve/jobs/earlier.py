"""Files that an earlier job wrote, known by what that job keeps beside them."""

from __future__ import annotations

from pathlib import Path

from serve.jobs.chunk_files import DamagedError
from serve.jobs.errors import JobRefusedError
from serve.jobs.folder import manifest_path
from serve.jobs.inputs.stored import digest_of
from serve.jobs.inputs.survey import FileDigest
from serve.jobs.manifest import Manifest


def find_results(file: FileDigest) -> frozenset[str]:
    """The columns of results of a file that is the unchanged output of a job; else none.

    Args:
        file: of an input.
    """
    path = Path(file.path)
    try:
        kept = Manifest.read(manifest_path(path))
    except (DamagedError, JobRefusedError, OSError, KeyError, TypeError):
        return frozenset()
    if kept is None or kept.done is None or kept.done.size != file.size:
        return frozenset()
    is_whole = file.num_hashed_bytes == file.size
    digest = file.sha256 if is_whole else digest_of(path, file.size)
    return kept.survey.names.written if digest == kept.done.sha256 else frozenset()
