"""`--watch`: which checkpoint of a folder is taken, and what is sent to the service."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from rm_core import ModelLoadError
from serve.config.model_settings import ModelSettings
from serve.config.settings import Settings
from serve.launch.watch import CheckpointFolder, FolderWatcher, parse_watched_folders

WRITTEN_AT, LATER = 1_000_000.0, 1_000_060.0


@pytest.fixture
def folder(tmp_path: Path, checkpoint_of: Callable[[str], Path]) -> Path:
    checkpoint_of("qwen3")
    return tmp_path / "run"


@pytest.fixture
def write(folder: Path, checkpoint_of: Callable[[str], Path]) -> Callable[..., Path]:
    """Return a function that writes a checkpoint of a name; returns its folder."""

    def write(name: str, written_at: float = WRITTEN_AT, spec: str = "qwen3") -> Path:
        path = Path(shutil.copytree(checkpoint_of(spec), folder / name, dirs_exist_ok=True))
        date(path, written_at)
        return path

    return write


def date(path: Path, written_at: float = WRITTEN_AT) -> None:
    for file in path.iterdir():
        os.utime(file, (written_at, written_at))


def watch(folder: Path) -> CheckpointFolder:
    return CheckpointFolder(folder, ModelSettings(name="demo", alias="demo", device="cpu"))


def look_twice(found: CheckpointFolder, now: float = LATER) -> Path | None:
    found.find_new(now)
    return found.find_new(now)


def test_complete_checkpoint_is_found_at_second_look(folder: Path, write: Callable) -> None:
    found = watch(folder)
    assert found.find_new(LATER) is None  # the folder does not exist yet
    path = write("checkpoint-100")
    assert found.find_new(LATER) is None
    assert found.find_new(LATER) == path
    found.take(path)
    assert found.find_new(LATER) is None


def test_checkpoint_that_was_just_written_is_not_found(folder: Path, write: Callable) -> None:
    write("checkpoint-100")
    assert look_twice(watch(folder), WRITTEN_AT + 1) is None
    assert look_twice(watch(folder), WRITTEN_AT + 3) == folder / "checkpoint-100"


def test_checkpoint_that_grows_is_not_found(folder: Path, write: Callable) -> None:
    path = write("checkpoint-100")
    found = watch(folder)
    found.find_new(LATER)
    (path / "optimizer.pt").write_bytes(b"1")
    date(path)
    assert found.find_new(LATER) is None
    assert found.find_new(LATER) == path


@pytest.mark.parametrize("damage", ["truncated", "no config", "no weights", "shards"])
def test_incomplete_checkpoint_waits_for_its_files(
    folder: Path, write: Callable, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("checkpoint-100")
    weights, config = path / "model.safetensors", path / "config.json"
    content, settings = weights.read_bytes(), config.read_bytes()
    match damage:
        case "truncated":
            weights.write_bytes(content[:-10])
        case "no config":
            config.unlink()
        case "no weights":
            weights.unlink()
        case "shards":
            weights.rename(path / "model-00001-of-00002.safetensors")
    date(path)
    found = watch(folder)
    for _ in range(4):
        assert found.find_new(LATER) is None
    assert len(caplog.records) == 1, "the reason is logged once"
    assert "is not taken" in caplog.text
    (path / "model-00001-of-00002.safetensors").unlink(missing_ok=True)
    weights.write_bytes(content)
    config.write_bytes(settings)
    date(path, WRITTEN_AT + 1)
    assert look_twice(found) == path


def test_index_without_all_its_shards_is_not_found(folder: Path, write: Callable) -> None:
    path = write("checkpoint-100")
    shard = path / "model-00001-of-00002.safetensors"
    (path / "model.safetensors").rename(shard)
    names = {"score.weight": shard.name, "other": "model-00002-of-00002.safetensors"}
    index = {"metadata": {}, "weight_map": names}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    date(path)
    assert look_twice(watch(folder)) is None


def test_highest_step_wins_and_no_older_one_follows(folder: Path, write: Callable) -> None:
    write("checkpoint-90", WRITTEN_AT + 2)
    newest = write("checkpoint-100", WRITTEN_AT)
    found = watch(folder)
    assert look_twice(found) == newest
    found.take(newest)
    assert look_twice(found) is None
    write("checkpoint-95", WRITTEN_AT + 5)
    assert look_twice(found) is None
    assert look_twice(watch(folder)) == newest
    later = write("global_step_200")
    assert look_twice(found) == later


def test_no_older_one_follows_when_the_one_taken_is_removed(folder: Path, write: Callable) -> None:
    best = write("checkpoint-100", WRITTEN_AT)
    latest = write("checkpoint-200", WRITTEN_AT + 1)
    found = watch(folder)
    assert look_twice(found) == latest
    found.take(latest)
    shutil.rmtree(latest)
    next_one = write("checkpoint-300", LATER)  # not settled yet
    assert look_twice(found, LATER) is None
    shutil.rmtree(next_one)
    of_new_run = write("checkpoint-10", WRITTEN_AT + 2)
    assert look_twice(found) == of_new_run
    assert best.exists()


def test_without_numbers_the_latest_wins(folder: Path, write: Callable) -> None:
    write("last", WRITTEN_AT)
    best = write("best", WRITTEN_AT + 1)
    found = watch(folder)
    assert look_twice(found) == best
    found.take(best)
    date(best, WRITTEN_AT + 2)  # it was written again
    assert look_twice(found) == best


def test_refused_checkpoint_gives_way_to_the_one_before(folder: Path, write: Callable) -> None:
    older, newest = write("checkpoint-90"), write("checkpoint-100")
    found = watch(folder)
    assert look_twice(found) == newest
    found.reject(newest, "NaN in a tensor")
    assert look_twice(found) == older


def test_renamed_checkpoint_is_found_and_temporary_ones_are_not(
    folder: Path, write: Callable
) -> None:
    path = write("tmp-checkpoint-100")
    write(".checkpoint-200")
    found = watch(folder)
    assert look_twice(found) is None
    path.rename(folder / "checkpoint-100")
    assert look_twice(found) == folder / "checkpoint-100"


class Reloads:
    """The service: answers reloads with the statuses of a list, and keeps what it got."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        status = self.statuses.pop(0)
        if not status:
            raise httpx.ConnectError("nobody listens")
        body = {"error": {"message": "NaN in a tensor"}} if status >= 400 else {}
        return httpx.Response(status, json=body)


@pytest.mark.parametrize("waits", [503, 429, 0])
def test_watcher_tries_again_until_service_answers(
    folder: Path, write: Callable, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, service = write("checkpoint-100"), Reloads(waits, 200)
    watcher = FolderWatcher(Settings.load(), {"demo": folder})
    monkeypatch.setattr(
        watcher,
        "_client",
        httpx.Client(
            base_url="http://service",
            transport=httpx.MockTransport(service),
            headers=watcher._client.headers,
        ),
    )
    found = watch(folder)
    for _ in range(5):
        watcher.look("demo", found)
    assert len(service.requests) == 2
    request = service.requests[1]
    assert request.url.path == "/v1/models/demo/reload"
    assert json.loads(request.content) == {"source": str(path), "version": "checkpoint-100"}
    assert request.headers["authorization"] == f"Bearer {watcher.admin_key}"


def test_watcher_does_not_try_refused_checkpoint_again(
    folder: Path,
    write: Callable,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    write("checkpoint-100")
    service = Reloads(409)
    watcher = FolderWatcher(Settings.load(), {"demo": folder})
    transport = httpx.MockTransport(service)
    client = httpx.Client(base_url="http://service", transport=transport)
    monkeypatch.setattr(watcher, "_client", client)
    found = watch(folder)
    for _ in range(5):
        watcher.look("demo", found)
    assert len(service.requests) == 1
    assert caplog.text.count("NaN in a tensor") == 1
    assert watcher.admin_key not in caplog.text


def test_folders_of_models(tmp_path: Path) -> None:
    one = Settings.load(models=["demo"])
    assert parse_watched_folders((str(tmp_path),), one) == {"demo": tmp_path}
    two = Settings.load(models=["a=demo", "b=demo"])
    assert parse_watched_folders((f"b={tmp_path}",), two) == {"b": tmp_path}
    for wrong in ((str(tmp_path),), (f"c={tmp_path}",), ("a=",), ("a=x", "a=y")):
        with pytest.raises(ModelLoadError, match="--watch"):
            parse_watched_folders(wrong, two)
