"""Links and files that another user may have planted where a job writes its state and output."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from job_runs import FakeExecutor, records, run_job, write_lines

from serve.errors import EvaluationError, JobInputError, JobRefusedError
from serve.evaluation.command import _make_folder
from serve.evaluation.files import read_summary
from serve.evaluation.runner import ScoringProvenance
from serve.jobs import atomic_io
from serve.jobs.atomic_io import (
    open_atomic,
    read_regular_file,
    reject_foreign_link,
    write_atomically,
)
from serve.jobs.inputs.scan import FileDigest
from serve.jobs.inputs.source import open_source
from serve.jobs.store import find_result_columns


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", records(25))


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.mkdir()
    (path / "file").write_text("precious")
    return path


def get_mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def is_untouched(victim: Path) -> bool:
    names = [path.name for path in victim.iterdir()]
    return names == ["file"] and (victim / "file").read_text() == "precious"


def test_job_folder_is_private(source: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run_job(source, tmp_path / "out.jsonl", FakeExecutor(fail_at=9))
    finally:
        os.umask(before)
    folder = tmp_path / "out.jsonl.job"
    assert get_mode(folder) == 0o700
    assert {get_mode(file) for file in folder.iterdir()} == {0o600}
    # An existing folder of the same user is made private.
    folder.chmod(0o755)
    run_job(source, tmp_path / "out.jsonl", FakeExecutor(), overwrite=True)
    assert get_mode(folder) == 0o700


@pytest.mark.parametrize("name", ["", "lock", "state.sqlite", "state.sqlite-wal", "x"])
def test_planted_links_are_refused(source: Path, tmp_path: Path, victim: Path, name: str) -> None:
    folder = tmp_path / "out.jsonl.job"
    if name:
        folder.mkdir()
    (folder / name).symlink_to(victim / "file" if name else victim)
    with pytest.raises(JobRefusedError, match="remove it, or give another output") as caught:
        run_job(source, tmp_path / "out.jsonl", FakeExecutor())
    assert str(folder) in caught.value.detail
    assert is_untouched(victim)
    assert not (tmp_path / "out.jsonl").exists()


def test_links_planted_while_job_folder_is_open_are_not_followed(
    source: Path, tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the check of the folder missed them."""
    monkeypatch.setattr("serve.jobs.output.make_private_folder", lambda folder: None)
    folder = tmp_path / "out.jsonl.job"
    folder.mkdir()
    for name in ("lock", "state.sqlite"):
        (folder / name).symlink_to(victim / "file")
        with pytest.raises(OSError, match="symbolic link"):
            run_job(source, tmp_path / "out.jsonl", FakeExecutor())
        (folder / name).unlink()
        assert is_untouched(victim)


def test_overwrite_does_not_follow_links_of_old_state(
    source: Path, tmp_path: Path, victim: Path
) -> None:
    chunks = tmp_path / "out.jsonl.job" / "chunks"
    chunks.mkdir(parents=True)
    (chunks / "000000.json.gz.partial").symlink_to(victim / "file")
    (chunks / "000001.json.gz.partial").symlink_to(victim)
    run_job(source, tmp_path / "out.jsonl", FakeExecutor(), overwrite=True)
    assert is_untouched(victim)
    assert not chunks.exists()


def test_job_folder_of_another_user_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.jsonl.job").mkdir()
    monkeypatch.setattr(atomic_io, "_own_user", lambda folder: os.getuid() + 1)
    with pytest.raises(JobRefusedError, match=rf"belongs to another user \(uid {os.getuid()}\)"):
        run_job(source, tmp_path / "out.jsonl", FakeExecutor())


def test_file_with_name_of_job_folder_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.job").write_text("")
    with pytest.raises(JobRefusedError, match="not a readable folder"):
        run_job(source, tmp_path / "out.jsonl", FakeExecutor())


def test_atomic_write_does_not_follow_planted_temporary_link(tmp_path: Path, victim: Path) -> None:
    path, temporary = tmp_path / "out", tmp_path / "out.partial"
    temporary.symlink_to(victim / "file")
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"
    assert is_untouched(victim)
    assert not temporary.is_symlink()

    # A link planted during the write does not redirect it.
    with open_atomic(path) as file:
        file.write(b"more")
        temporary.unlink()
        temporary.symlink_to(victim / "file")
    assert is_untouched(victim)


def test_own_link_as_output_folder_is_followed(source: Path, tmp_path: Path, victim: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    run_job(source, tmp_path / "link" / "out.jsonl", FakeExecutor())
    assert (tmp_path / "elsewhere" / "out.jsonl").is_file()
    _make_folder(tmp_path / "link")


@pytest.fixture
def _read_only_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to create files; modes have no effect on root."""

    def refuse(**_options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(atomic_io.tempfile, "TemporaryFile", refuse)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_read_only_parents")
def test_own_link_in_read_only_folder_is_followed(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "link").symlink_to(victim)
    _make_folder(tmp_path / "link")


@pytest.mark.parametrize("parent", ["writable", "read-only"])
def test_results_folder_that_is_foreign_link_is_refused(
    parent: str,
    tmp_path: Path,
    victim: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if parent == "read-only":
        request.getfixturevalue("_read_only_parents")
    (tmp_path / "results").symlink_to(victim)
    real = os.lstat

    def fake_lstat(path: Path) -> os.stat_result:
        fields = list(real(path))
        fields[stat.ST_UID] = 4711
        return os.stat_result(fields)

    monkeypatch.setattr(atomic_io.os, "lstat", fake_lstat)  # type: ignore[attr-defined]
    with pytest.raises(
        JobRefusedError, match=r"is a link to .* that another user made \(uid 4711\)"
    ):
        _make_folder(tmp_path / "results")
    reject_foreign_link(victim)
    reject_foreign_link(tmp_path / "not there yet")


def test_reading_state_does_not_block_on_pipes(source: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl.job").mkdir()
    (tmp_path / "out").mkdir()
    pipes = [
        tmp_path / "in.jsonl.job" / "state.sqlite", tmp_path / "out" / "summary.json",
        tmp_path / "out" / "scored_by.json", tmp_path / "pipe",
    ]  # fmt: skip
    for pipe in pipes:
        os.mkfifo(pipe)
    digest = FileDigest(str(source), source.stat().st_size, 0, "", source.stat().st_size)
    assert find_result_columns(digest) == frozenset()
    with pytest.raises(EvaluationError, match="not a regular file"):
        read_summary(tmp_path / "out")
    assert ScoringProvenance.read(tmp_path / "out" / "scored_by.json") is None
    with pytest.raises(OSError, match="not a regular file"):
        read_regular_file(tmp_path / "pipe")
    with pytest.raises(JobInputError, match="not a regular file"):
        open_source(str(tmp_path / "pipe"))


def test_too_large_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="more than 268,435,456 bytes"):
        read_regular_file(tmp_path / "large")
    (tmp_path / "small").write_text(json.dumps({}))
    assert read_regular_file(tmp_path / "small") == b"{}"
