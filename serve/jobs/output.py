"""The output of a command, and the folder with the state of the job that writes it.

The state of a local output is next to it, in `OUTPUT.job`. The state of a remote output is in a
folder of this user: a job locks it and appends to it all the time, as stores of objects cannot.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from serve.errors import JobOutputError, JobRefusedError
from serve.jobs.atomic_io import make_private_folder
from serve.jobs.inputs.source import FileSource
from serve.jobs.storage import FetchedFiles, FileState, Location, parse_location

LOCK_FILE = "lock"
FETCHED_FOLDER = "inputs"
_STATE_SUFFIX = ".job"
_MAX_NAME = 80


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command writes its rows.

    Attributes:
        location: file to write.
        state_folder: private folder for the state of the job.
    """

    location: Location
    state_folder: Path

    @classmethod
    def parse(cls, name: str | Path, state_folder: Path | None = None) -> Output:
        """Return the output that a path or an address means.

        Args:
            name: OUTPUT of the command line.
            state_folder: folder for the state of the job; None for the usual one.

        Raises:
            JobInputError: no file system is known or installed for the scheme of an address.
        """
        if str(name) == "-":
            raise JobOutputError(
                "the output cannot be standard output, because a job resumes with the state of a "
                "named output; give the name of a file"
            )
        location = parse_location(str(name))
        folder = state_folder.absolute() if state_folder else _get_state_folder(location)
        return cls(location, folder)

    def __str__(self) -> str:
        return str(self.location)

    @property
    def is_state_elsewhere(self) -> bool:
        """Whether the folder of the state does not say by its place which output it belongs to."""
        path = self.location.local_path
        return path is None or self.state_folder != get_job_folder(path)

    @property
    def fetched_files(self) -> FetchedFiles:
        """Copies of the input's remote files, in the folder of the state."""
        return FetchedFiles(self.state_folder / FETCHED_FOLDER)

    def measure(self) -> FileState:
        """Return the state of the file."""
        return self.location.measure()

    def open_atomic(self) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open a file that replaces the output if the block succeeds; see `Location`."""
        return self.location.open_atomic(self.state_folder)

    def remove_partial(self) -> None:
        """Remove what a killed run has written of the output."""
        self.location.get_partial_path(self.state_folder).unlink(missing_ok=True)

    def require_writable(self, source: FileSource) -> None:
        """Check that the output can be created, and that it is not a file of the input.

        Raises:
            JobOutputError: the folder does not exist, there is something other than a file, or the
                output is also the input.
            StorageError: the store of the output cannot be reached.
        """
        self.location.require_writable()
        if any(self.location.is_inside(file.location) for file in source.files):
            raise JobOutputError(f"{self} is also the input; give another name for the output")

    def make_state_folder(self) -> None:
        """Create the private folder of the state, or check an existing one.

        Raises:
            JobRefusedError: the folder is not private, or has files of something else.
        """
        folder = self.state_folder
        if self.is_state_elsewhere:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if os.listdir(folder) and not (folder / LOCK_FILE).exists():
                    raise JobRefusedError(
                        f"{folder} has files and is not the state of a job; give an empty or a new "
                        "folder as --state"
                    )
        make_private_folder(folder)


def get_job_folder(output: Path) -> Path:
    """Return the folder for the state of a local output's job."""
    return output.with_name(output.name + _STATE_SUFFIX)


def get_state_home() -> Path:
    """Return the folder for the states of jobs whose outputs are remote."""
    home = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".local/state") / "skyreward/jobs"


def _get_state_folder(location: Location) -> Path:
    if location.local_path is not None:
        return get_job_folder(location.local_path)
    digest = hashlib.sha256(location.name.encode()).hexdigest()[:16]
    readable = re.sub(r"[^\w.-]", "_", location.basename)[-_MAX_NAME:]
    return get_state_home() / f"{digest}-{readable}{_STATE_SUFFIX}"
