"""`skyreward serve --watch`: takes each complete new checkpoint that a trainer writes to a folder.

A thread of the launcher looks into the folder and sends reloads to the service, with Ray and
without. A checkpoint is a subfolder, such as `checkpoint-100` or `global_step_100`. It is taken
once all of its files are there in full and have not changed since the look before. The one with the
highest number in its name wins, without numbers the latest; none that is older than the weights
that serve is taken.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import httpx

from rm_core import ModelLoadError, open_checkpoint
from serve.config.model_settings import ModelSettings
from serve.config.settings import Settings
from serve.launch.address import create_client

logger = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 2.0
_SETTLED_AFTER_S = 2.0
_TEMPORARY = re.compile(r"^(\.|tmp|_tmp)|\.tmp$|\.incomplete$")
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
_INDEX = "model.safetensors.index.json"

FileStates: TypeAlias = tuple[tuple[str, int, int], ...]
"""Name, size in bytes and modification time in nanoseconds of each file of a checkpoint."""


def parse_watched_folders(values: tuple[str, ...], settings: Settings) -> dict[str, Path]:
    """Return the watched folder of each model; the only model needs no `ALIAS=` before it."""
    aliases = [model.alias for model in settings.models]
    folders: dict[str, Path] = {}
    for value in values:
        alias, _, folder = value.rpartition("=")
        if not alias and len(aliases) == 1:
            alias = aliases[0]
        if alias not in aliases or not folder:
            raise ModelLoadError(
                f"--watch is {value!r}; write ALIAS=FOLDER with one of the models that are served: "
                f"{', '.join(aliases)}"
            )
        if alias in folders:
            raise ModelLoadError(f"--watch names {alias} twice; a model has one folder")
        folders[alias] = Path(folder).expanduser().absolute()
    return folders


class CheckpointFolder:
    """Finds the checkpoints of a trainer that are complete, and newer than the last one taken."""

    def __init__(self, folder: Path, model: ModelSettings) -> None:
        self._folder = folder
        self._model = model
        self._last_look: dict[Path, FileStates] = {}
        self._rejected: dict[Path, FileStates] = {}
        self._taken: tuple[Path, FileStates] | None = None

    def find_new(self, now: float) -> Path | None:
        """Look into the folder; return the newest complete checkpoint, if it is a new one.

        A checkpoint that cannot be used is logged with the reason, and not looked at again until
        its files change.
        """
        before, self._last_look = self._last_look, self._read_states()
        ages = {path: _get_age(path, states) for path, states in self._last_look.items()}
        for path in sorted(ages, key=ages.__getitem__, reverse=True):
            states = self._last_look[path]
            if self._taken is not None and not self._is_newer(path, states):
                continue
            age_s = now - _get_modified(states) / 1e9
            if states != before.get(path) or age_s < _SETTLED_AFTER_S:
                continue  # it may still be written
            if self._rejected.get(path) == states:
                continue
            if reason := self._find_fault(path):
                self.reject(path, reason)
                continue
            return path
        return None

    def reject(self, path: Path, reason: str) -> None:
        """Record that a checkpoint cannot be used."""
        self._rejected[path] = self._last_look[path]
        logger.warning("%s: %s is not taken: %s", self._model.alias, path, reason)

    def take(self, path: Path) -> None:
        """Record that the weights of a checkpoint serve now."""
        self._taken = path, self._last_look[path]

    def _read_states(self) -> dict[Path, FileStates]:
        found = {}
        try:
            for path in self._folder.iterdir():
                if path.is_dir() and not _TEMPORARY.search(path.name):
                    found[path] = _read_file_states(path)
        except OSError:  # it does not exist yet, or a checkpoint was removed at this moment
            return {}
        return found

    def _is_newer(self, path: Path, states: FileStates) -> bool:
        assert self._taken is not None
        taken, taken_states = self._taken
        if path == taken:
            return states != taken_states
        if taken in self._last_look:
            return _get_age(path, states) > _get_age(taken, taken_states)
        # Its trainer removed it, to keep a few checkpoints or to begin again at step 0.
        return _get_modified(states) > _get_modified(taken_states)

    def _find_fault(self, path: Path) -> str | None:
        names = [name for name, _, _ in self._last_look[path]]
        if any(map(_SHARD.search, names)) and _INDEX not in names:
            return f"{_INDEX} is missing, and there are shards"
        config = self._model.with_weights(str(path), None)
        try:
            open_checkpoint(config.to_model_config())
        except ModelLoadError as error:
            return error.detail
        return None


def _get_age(path: Path, states: FileStates) -> tuple[int, int]:
    """Return the step and the time in nanoseconds by which checkpoints are ordered."""
    numbers = re.findall(r"\d+", path.name)
    return (int(numbers[-1][:18]) if numbers else -1, _get_modified(states))


def _get_modified(states: FileStates) -> int:
    return max((time_ns for _, _, time_ns in states), default=0)


def _read_file_states(path: Path) -> FileStates:
    states = []
    for file in sorted(path.iterdir()):
        if file.is_file():
            status = file.stat()
            states.append((file.name, status.st_size, status.st_mtime_ns))
    return tuple(states)


class FolderWatcher(threading.Thread):
    """Reloads models of the service from the checkpoints that appear in folders."""

    def __init__(self, settings: Settings, folders: Mapping[str, Path]) -> None:
        super().__init__(name="watch", daemon=True)
        # The service has to accept it.
        self.admin_key = secrets.token_hex(32)
        self._client = create_client(settings)
        # To the service that this process started, at its own address.
        self._client.headers["Authorization"] = f"Bearer {self.admin_key}"
        models = {model.alias: model for model in settings.models}
        self._folders = {
            alias: CheckpointFolder(folder, models[alias]) for alias, folder in folders.items()
        }
        self._is_over = threading.Event()

    def run(self) -> None:
        """Look into the folders until `stop`."""
        with self._client:
            while not self._is_over.wait(_LOOK_INTERVAL_S):
                for alias, folder in self._folders.items():
                    try:
                        self.look(alias, folder)
                    except Exception:  # a thread that dies would take no more checkpoints
                        logger.exception("%s: its folder cannot be watched; trying again", alias)

    def stop(self) -> None:
        """Stop looking; a reload that is running is not waited for."""
        self._is_over.set()

    def look(self, alias: str, folder: CheckpointFolder) -> None:
        """Look into a folder, and reload its model if there is a new checkpoint."""
        path = folder.find_new(time.time())
        if path is None:
            return
        body = {"source": str(path), "version": path.name}
        try:
            answer = self._client.post(f"/v1/models/{alias}/reload", json=body, timeout=None)
        except httpx.HTTPError as error:
            logger.warning("%s: the service does not answer: %s; trying again", alias, error)
            return
        if answer.is_success:
            folder.take(path)
            logger.info("%s: its weights are those of %s now", alias, path)
        elif answer.status_code in (429, 503):  # asleep, not ready
            logger.debug("%s: %s waits: %s", alias, path, answer.text)
        else:
            folder.reject(path, answer.json()["error"]["message"])
