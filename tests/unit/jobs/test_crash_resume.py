"""Jobs that end by SIGKILL at random moments or by a full disk, and are resumed."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job_runs import FakeExecutor, comparable, records, run_job, write_lines
from waiting import PATIENCE_S, until

from serve.errors import DiskFullError
from serve.jobs.atomic_io import open_atomic, write_atomically

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
    chunks = output.with_name("out.jsonl.job") / "chunks"
    for _ in range(20):
        num_calls, num_chunks = num_lines(calls), len(list(chunks.glob("*.gz")))
        process = _FORK.Process(target=run_in_child, args=(source, output, calls))
        process.start()
        wait_for_calls(process, calls, num_more=rng.randrange(4))
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        # Results that were not saved are lost: at most the calls in flight.
        num_kept = len(list(chunks.glob("*.gz"))) - num_chunks
        assert num_lines(calls) - num_calls <= num_kept + uninterrupted_executor.capacity
    num_calls, num_chunks = num_lines(calls), len(list(chunks.glob("*.gz")))
    assert num_chunks > 0
    process = _FORK.Process(target=run_in_child, args=(source, output, calls))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # A finished job returns the summary of all its runs.
    done = run_job(source, output, FakeExecutor())
    assert comparable(done) == comparable(uninterrupted)
    # No saved chunk was scored again.
    assert num_lines(calls) - num_calls <= 60 - num_chunks


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
        failures = 0
        while True:
            with contextlib.suppress(DiskFullError):
                run_job(source, output, FakeExecutor())
                break
            with pytest.raises(
                DiskFullError, match=r"disk is too full .*disk.* run the same command"
            ):
                run_job(source, output, FakeExecutor())
            assert not list(disk.rglob("*.partial"))
            failures += 1
            os.truncate(ballast, ballast.stat().st_size - 120_000)
        assert failures > 5
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
    chunks = tmp_path / "out.jsonl.job" / "chunks"
    until((chunks / "000002.json.gz").exists)
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
