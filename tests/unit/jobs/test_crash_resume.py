"""Runs that end by SIGKILL at random moments, or by a disk that is full, and are started again."""

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


def child(source: Path, output: Path, calls: Path) -> None:
    """A run whose carrier notes each call that it begins to answer."""
    os.setpgrp()
    carrier = FakeExecutor(delay_s=0.01)

    def note(number: int) -> None:
        with calls.open("a") as file:
            file.write(f"{len(carrier.calls[number])}\n")

    carrier.before = note
    run_job(source, output, carrier)
    os._exit(0)


def until_begun(process: Any, calls: Path, num_more: int) -> None:
    """Return once a run has begun so many calls."""
    wanted = num_lines(calls) + num_more
    while num_lines(calls) < wanted:
        assert process.is_alive()
        time.sleep(0.002)


def num_lines(calls: Path) -> int:
    return len(calls.read_text().splitlines())


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """The output is that of an undisturbed run, and nothing that was kept is scored again."""
    source = write_lines(tmp_path / "in.jsonl", records(600))
    whole = FakeExecutor()
    undisturbed = run_job(source, tmp_path / "whole.jsonl", whole)
    output, calls = tmp_path / "out.jsonl", tmp_path / "calls"
    calls.touch()
    rng = random.Random(5)
    chunks = output.with_name("out.jsonl.job") / "chunks"
    for _ in range(20):
        num_calls, num_chunks = num_lines(calls), len(list(chunks.glob("*.gz")))
        process = _FORK.Process(target=child, args=(source, output, calls))
        process.start()
        until_begun(process, calls, num_more=rng.randrange(4))
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        # What was answered and not yet kept is lost: no more than may be in flight at a time.
        num_kept = len(list(chunks.glob("*.gz"))) - num_chunks
        assert num_lines(calls) - num_calls <= num_kept + whole.capacity
    num_calls, num_chunks = num_lines(calls), len(list(chunks.glob("*.gz")))
    assert num_chunks > 0
    process = _FORK.Process(target=child, args=(source, output, calls))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # A job that is done gives the figures of all its runs.
    done = run_job(source, output, FakeExecutor())
    assert comparable(done) == comparable(undisturbed)
    # Of the chunks that were kept none was scored again.
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


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """Fails with a clear message wherever the room ends, and goes on once there is some."""
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
            with pytest.raises(DiskFullError, match=r"no room left .*disk.* run the same command"):
                run_job(source, output, FakeExecutor())
            assert not list(disk.rglob("*.partial"))
            failures += 1
            os.truncate(ballast, ballast.stat().st_size - 120_000)
        assert failures > 5
        assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def free_bytes(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """Found in every file that a job writes, without a disk of its own."""
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


def test_a_file_is_whole_or_what_it_was(tmp_path: Path) -> None:
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


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """The first one waits for what is in flight, here for ever."""
    source = write_lines(tmp_path / "in.jsonl", records(95))
    errors = tmp_path / "stderr"
    errors.touch()

    def stuck() -> None:
        from serve.jobs.shutdown import GracefulShutdown

        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        carrier = FakeExecutor()
        carrier.before = lambda number: time.sleep(600) if number == 3 else None
        with GracefulShutdown("stopping\n") as stopping:
            run_job(source, tmp_path / "out.jsonl", carrier, stopping=stopping)

    process = _FORK.Process(target=stuck)
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
