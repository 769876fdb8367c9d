"""Jobs that end by SIGKILL at random moments or by a full disk, and are resumed."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job_runs import FakeExecutor, comparable, count_chunks, records, run_job, write_lines
from waiting import PATIENCE_S, until

from serve.errors import DiskFullError
from serve.jobs.atomic_io import open_atomic, write_atomically
from serve.jobs.writers import JsonlWriter

_FORK = multiprocessing.get_context("fork")


def run_in_child(source: Path, output: Path, calls: Path) -> None:
    """Run a job that records each call that its executor starts."""
    os.setpgrp()
    executor = FakeExecutor(delay_s=0.01)

    def record_call(number: int) -> None:
        with calls.open("a") as file:
            file.write(f"{len(executor.calls[number])}\n")

    executor.before = record_call
    run_job(source, output, executor)
    os._exit(0)


def run_in_another_process(source: Path, output: Path, calls: Path) -> None:
    """Run a job from start to end in a process of its own, as `run_in_child` does."""
    process = _FORK.Process(target=run_in_child, args=(source, output, calls))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0


def wait_for_calls(process: Any, calls: Path, num_more: int) -> None:
    """Wait until a run has started `num_more` calls."""
    wanted = num_lines(calls) + num_more
    while num_lines(calls) < wanted:
        assert process.is_alive()
        time.sleep(0.002)


def num_lines(calls: Path) -> int:
    return len(calls.read_text().splitlines())


def test_job_killed_at_random_moments_resumes_without_rescoring(tmp_path: Path) -> None:
    """The output equals that of an uninterrupted run, and saved chunks are not scored again."""
    source = write_lines(tmp_path / "in.jsonl", records(600))
    uninterrupted_executor = FakeExecutor()
    uninterrupted = run_job(source, tmp_path / "whole.jsonl", uninterrupted_executor)
    output, calls = tmp_path / "out.jsonl", tmp_path / "calls"
    calls.touch()
    rng = random.Random(5)
    for _ in range(20):
        num_calls, num_chunks = num_lines(calls), count_chunks(output)
        process = _FORK.Process(target=run_in_child, args=(source, output, calls))
        process.start()
        wait_for_calls(process, calls, num_more=rng.randrange(4))
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        # Results that were not saved are lost: at most the calls in flight.
        num_kept = count_chunks(output) - num_chunks
        assert num_lines(calls) - num_calls <= num_kept + uninterrupted_executor.capacity
    num_calls, num_chunks = num_lines(calls), count_chunks(output)
    assert num_chunks > 0
    run_in_another_process(source, output, calls)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # A finished job returns the summary of all its runs.
    done = run_job(source, output, FakeExecutor())
    assert comparable(done) == comparable(uninterrupted)
    # No saved chunk was scored again.
    assert num_lines(calls) - num_calls <= 60 - num_chunks


def test_job_killed_before_any_statement_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resume from the files that a kill leaves before each statement of SQLite."""
    source = write_lines(tmp_path / "in.jsonl", records(30))
    run_job(source, tmp_path / "whole.jsonl", FakeExecutor())
    output = tmp_path / "out.jsonl"
    folder = output.with_name("out.jsonl.job")
    files_left: dict[tuple[tuple[Path, bytes], ...], None] = {}
    connect = sqlite3.connect

    def read_files(_: str) -> None:
        files = [output, *folder.iterdir()]
        files_left[tuple((file, file.read_bytes()) for file in files if file.exists())] = None

    def connect_and_watch(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(read_files)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect_and_watch)
        run_job(source, output, FakeExecutor())
    assert len(files_left) > 10
    for files in files_left:
        output.unlink()
        shutil.rmtree(folder)
        folder.mkdir(0o700)
        for file, content in files:
            file.write_bytes(content)
        run_job(source, output, FakeExecutor())
        assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_job_killed_while_writing_scores_nothing_again(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", records(600))
    run_job(source, tmp_path / "whole.jsonl", FakeExecutor())
    output, calls = tmp_path / "out.jsonl", tmp_path / "calls"
    calls.touch()
    partial = output.with_name("out.jsonl.partial")
    write = JsonlWriter.write

    def write_slowly(*arguments: Any) -> None:
        time.sleep(0.001)
        write(*arguments)

    def run_slowly() -> None:
        JsonlWriter.write = write_slowly  # type: ignore[method-assign]
        run_in_child(source, output, calls)

    rng = random.Random(5)
    for _ in range(8):
        process = _FORK.Process(target=run_slowly)
        process.start()
        until(partial.exists)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not output.exists()
    num_calls = num_lines(calls)
    run_in_another_process(source, output, calls)
    assert num_lines(calls) == num_calls
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_job_on_full_disk_fails_clearly_and_resumes(tmp_path: Path) -> None:
    """The job fails with a clear message whenever the disk is full, and resumes with more space."""
    source = write_lines(tmp_path / "in.jsonl", records(600))
    run_job(source, tmp_path / "whole.jsonl", FakeExecutor())
    with small_disk(tmp_path / "disk", "8m") as disk:
        output, ballast = disk / "out.jsonl", disk / "ballast"
        ballast.write_bytes(bytes(free_bytes(disk)))
        failures: list[str] = []
        while not output.exists():
            try:
                run_job(source, output, FakeExecutor())
            except DiskFullError as error:
                failures.append(error.detail)
                os.truncate(ballast, ballast.stat().st_size - 50_000)
            assert not list(disk.rglob("*.partial"))
        assert len(failures) > 5
        says = re.compile(
            r"the disk is too full .*disk.* then run the same command again to resume"
        )
        assert all(map(says.match, failures))
        assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def free_bytes(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def test_file_size_limit_fails_every_write_and_job_resumes(tmp_path: Path) -> None:
    """The limit affects every file of a job and needs no separate disk."""
    source = write_lines(tmp_path / "in.jsonl", records(300))
    run_job(source, tmp_path / "whole.jsonl", FakeExecutor())
    output = tmp_path / "out.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (300, 20_000, 100_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(DiskFullError):
                run_job(source, output, FakeExecutor())
            assert not list(tmp_path.rglob("*.partial"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    run_job(source, output, FakeExecutor())
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_failed_atomic_write_keeps_previous_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"first")

    def fails() -> None:
        with open_atomic(path) as file:
            file.write(b"seco")
            raise OSError(errno.ENOSPC, "no room")

    with pytest.raises(OSError, match="no room"):
        fails()
    assert path.read_bytes() == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_second_signal_ends_job_at_once(tmp_path: Path) -> None:
    """The first signal waits for the calls in flight, which never finish here."""
    source = write_lines(tmp_path / "in.jsonl", records(95))
    errors = tmp_path / "stderr"
    errors.touch()

    def run_stuck_job() -> None:
        from serve.shutdown import GracefulShutdown

        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        executor = FakeExecutor()
        executor.before = lambda number: time.sleep(600) if number == 3 else None
        with GracefulShutdown("stopping\n") as shutdown:
            run_job(source, tmp_path / "out.jsonl", executor, shutdown=shutdown)

    process = _FORK.Process(target=run_stuck_job)
    process.start()
    until(lambda: count_chunks(tmp_path / "out.jsonl") >= 3)
    assert process.pid
    os.kill(process.pid, signal.SIGINT)
    until(lambda: errors.read_text() == "stopping\n")
    process.join(0.2)
    assert process.exitcode is None
    os.kill(process.pid, signal.SIGINT)
    process.join(PATIENCE_S)
    assert process.exitcode == 130
    rest = FakeExecutor()
    run_job(source, tmp_path / "out.jsonl", rest)
    assert len(rest.calls) == 7
