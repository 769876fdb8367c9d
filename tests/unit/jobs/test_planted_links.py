"""What another user of the machine may have put where a job keeps its state and its output."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from job_runs import FakeExecutor, records, run_job, write_lines

from serve.errors import EvaluationError, JobError, JobInputError, JobRefusedError
from serve.evaluation.artifacts import read_summary
from serve.evaluation.command import _make_folder
from serve.evaluation.runner import ScoringProvenance
from serve.jobs import private_files
from serve.jobs.atomic_io import open_atomic, read_regular_file, write_atomically
from serve.jobs.inputs.resolve import open_source
from serve.jobs.inputs.scan import FileDigest
from serve.jobs.lock import hold_lock
from serve.jobs.previous_output import find_result_columns
from serve.jobs.private_files import make_private_folder, reject_foreign_link


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", records(25))


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.mkdir()
    (path / "file").write_text("precious")
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def untouched(victim: Path) -> bool:
    names = [path.name for path in victim.iterdir()]
    return names == ["file"] and (victim / "file").read_text() == "precious"


def test_the_folder_of_a_job_is_private(source: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run_job(source, tmp_path / "out.jsonl", FakeExecutor(fail_at=9))
    finally:
        os.umask(before)
    folder = tmp_path / "out.jsonl.job"
    assert mode_of(folder) == 0o700
    assert mode_of(folder / "lock") == 0o600
    # One that an earlier version made is ours, and made private.
    folder.chmod(0o755)
    run_job(source, tmp_path / "out.jsonl", FakeExecutor(), overwrite=True)
    assert mode_of(folder) == 0o700


@pytest.mark.parametrize("name", ["", "lock", "chunks", "manifest.json", "seen.sqlite", "x"])
def test_planted_links_are_refused(source: Path, tmp_path: Path, victim: Path, name: str) -> None:
    folder = tmp_path / "out.jsonl.job"
    if name:
        folder.mkdir()
    (folder / name).symlink_to(victim if name in ("", "chunks") else victim / "file")
    with pytest.raises(JobRefusedError, match="remove it, or give another output") as caught:
        run_job(source, tmp_path / "out.jsonl", FakeExecutor())
    assert str(folder) in caught.value.detail
    assert untouched(victim)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_link_among_the_chunks_is_refused(source: Path, tmp_path: Path, victim: Path) -> None:
    chunks = tmp_path / "out.jsonl.job" / "chunks"
    chunks.mkdir(parents=True)
    (chunks / "000000.json.gz.partial").symlink_to(victim / "file")
    with pytest.raises(JobError):
        make_private_folder(chunks)
    run_job(source, tmp_path / "out.jsonl", FakeExecutor())  # what a kill left behind is swept
    assert untouched(victim)


def test_a_lock_that_is_a_link_is_never_written(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "lock").symlink_to(victim / "file")
    with pytest.raises(OSError, match="symbolic link"), hold_lock(tmp_path / "lock"):
        pass
    assert untouched(victim)


def test_a_folder_of_another_user_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.jsonl.job").mkdir()
    monkeypatch.setattr(private_files, "_own_user", lambda folder: os.getuid() + 1)
    with pytest.raises(JobRefusedError, match=rf"belongs to another user \(uid {os.getuid()}\)"):
        run_job(source, tmp_path / "out.jsonl", FakeExecutor())


def test_a_file_in_the_place_of_the_folder_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.job").write_text("")
    with pytest.raises(JobRefusedError, match="no folder that can be read"):
        run_job(source, tmp_path / "out.jsonl", FakeExecutor())


def test_temporary_files_are_made_and_never_followed(tmp_path: Path, victim: Path) -> None:
    path, temporary = tmp_path / "out", tmp_path / "out.partial"
    temporary.symlink_to(victim / "file")
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"
    assert untouched(victim)
    assert not temporary.is_symlink()

    # Planted while it is written: only the name is theirs.
    with open_atomic(path) as file:
        file.write(b"more")
        temporary.unlink()
        temporary.symlink_to(victim / "file")
    assert untouched(victim)


def test_an_output_folder_that_is_our_own_link_is_followed(
    source: Path, tmp_path: Path, victim: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    run_job(source, tmp_path / "link" / "out.jsonl", FakeExecutor())
    assert (tmp_path / "elsewhere" / "out.jsonl").is_file()
    _make_folder(tmp_path / "link")


@pytest.fixture
def _read_only_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes alone would not do: root writes all the same."""

    def refuse(**_options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(private_files.tempfile, "TemporaryFile", refuse)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_read_only_parents")
def test_our_own_link_is_followed_where_nothing_can_be_written_beside_it(
    tmp_path: Path, victim: Path
) -> None:
    (tmp_path / "link").symlink_to(victim)
    _make_folder(tmp_path / "link")


@pytest.mark.parametrize("parent", ["writable", "read-only"])
def test_a_results_folder_that_is_a_link_of_another_user_is_refused(
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

    def of_another_user(path: Path) -> os.stat_result:
        fields = list(real(path))
        fields[stat.ST_UID] = 4711
        return os.stat_result(fields)

    monkeypatch.setattr(private_files.os, "lstat", of_another_user)  # type: ignore[attr-defined]
    with pytest.raises(JobRefusedError, match=r"a link that another user made \(uid 4711\), to"):
        _make_folder(tmp_path / "results")
    reject_foreign_link(victim)
    reject_foreign_link(tmp_path / "not there yet")


def test_pipes_are_not_waited_for(source: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl.job").mkdir()
    (tmp_path / "out").mkdir()
    pipes = [
        tmp_path / "in.jsonl.job" / "manifest.json", tmp_path / "out" / "summary.json",
        tmp_path / "out" / "scored_by.json", tmp_path / "pipe",
    ]  # fmt: skip
    for pipe in pipes:
        os.mkfifo(pipe)
    digest = FileDigest(str(source), source.stat().st_size, 0, "", source.stat().st_size)
    assert find_result_columns(digest) == frozenset()
    with pytest.raises(EvaluationError, match="no regular file"):
        read_summary(tmp_path / "out")
    assert ScoringProvenance.read(tmp_path / "out" / "scored_by.json") is None
    with pytest.raises(OSError, match="no regular file"):
        read_regular_file(tmp_path / "pipe")
    with pytest.raises(JobInputError, match="no file"):
        open_source(str(tmp_path / "pipe"))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="more than 268,435,456 bytes"):
        read_regular_file(tmp_path / "large")
    (tmp_path / "small").write_text(json.dumps({}))
    assert read_regular_file(tmp_path / "small") == b"{}"
