"""State of a job that was damaged, is of another version, or was left behind: told, or harmless."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from job_runs import FakeExecutor, comparable, records, run_job, write_lines

from serve.errors import JobError, JobRefusedError
from serve.jobs.store import STATE_FILE
from serve.jobs.summary import Summary

Damage = Callable[[Path, random.Random], None]
TOLD = r"state\.sqlite is damaged \(.*\), so .* with --overwrite"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Summary, FakeExecutor]:
    """Return output, summary and executor of an uninterrupted job."""
    folder = tmp_path_factory.mktemp("whole")
    executor = FakeExecutor()
    source = write_lines(folder / "in.jsonl", records(95))
    summary = run_job(source, folder / "out.jsonl", executor)
    return (folder / "out.jsonl").read_bytes(), summary, executor


@pytest.fixture
def half_done(tmp_path: Path) -> Path:
    """Return the output of a job that ended after 6 of 10 chunks."""
    source = write_lines(tmp_path / "in.jsonl", records(95))
    with pytest.raises(RuntimeError):
        run_job(source, tmp_path / "out.jsonl", FakeExecutor(fail_at=6))
    files = sorted(file.name for file in (tmp_path / "out.jsonl.job").iterdir())
    assert files == ["lock", STATE_FILE]
    return tmp_path / "out.jsonl"


def get_state(output: Path) -> Path:
    return output.with_name(output.name + ".job") / STATE_FILE


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size)])


def randomize(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(path.stat().st_size))


def flip_one_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def change_block(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    content[start : start + 200] = rng.choice((bytes(200), rng.randbytes(200)))
    path.write_bytes(content)


def exchange_pages(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    pages = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    first, second = rng.sample(range(1, len(pages)), 2)
    pages[first], pages[second] = pages[second], pages[first]
    path.write_bytes(b"".join(pages))


DAMAGES = [truncate, randomize, flip_one_bit, change_block, exchange_pages]


def finish(
    output: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor], *, overwrite: bool = False
) -> FakeExecutor:
    """Resume the job; check that output and summary equal those of an uninterrupted job."""
    executor = FakeExecutor()
    source = output.with_name("in.jsonl")
    summary = run_job(source, output, executor, overwrite=overwrite)
    assert output.read_bytes() == uninterrupted[0]
    assert comparable(summary) == comparable(uninterrupted[1])
    remaining = sorted(file.name for file in output.parent.iterdir())
    assert remaining == ["in.jsonl", "out.jsonl", "out.jsonl.job"]
    return executor


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_state_is_told_or_harmless(
    half_done: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor], damage: Damage
) -> None:
    state = get_state(half_done)
    intact = state.read_bytes()
    num_told = 0
    for seed in range(30):
        for file in state.parent.glob(f"{STATE_FILE}*"):
            file.unlink()
        state.write_bytes(intact)
        damage(state, random.Random(seed))
        with contextlib.suppress(FileNotFoundError):
            half_done.unlink()
        told: list[str] = []
        try:
            finish(half_done, uninterrupted)
        except JobError as error:
            told.append(error.detail)
        num_told += len(told)
        assert all("--overwrite" in text for text in told)
        assert half_done.exists() != bool(told)
    # The last page may end with bytes that nothing uses, which a file may lose.
    assert num_told >= {truncate: 20, randomize: 30, exchange_pages: 30}.get(damage, 5)
    damage(state, random.Random(1))
    finish(half_done, uninterrupted, overwrite=True)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE chunks SET value = (SELECT value FROM chunks WHERE key = 2) WHERE key = 3",
        "UPDATE chunks SET value = substr(value, 2) WHERE key = 3",
        "UPDATE chunks SET checksum = NULL WHERE key = 3",
        "DELETE FROM chunks WHERE key = 3",
        "UPDATE results SET value = CAST(replace(value, '[', '[1') AS BLOB)",
        "UPDATE results SET value = NULL",
        "UPDATE meta SET value = CAST(replace(value, '60', '50') AS BLOB) WHERE key = 'progress'",
        "DELETE FROM meta WHERE key = 'progress'",
        "DROP TABLE results",
    ],
)
def test_change_that_sqlite_cannot_see_is_told(
    half_done: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor], change: str
) -> None:
    with contextlib.closing(sqlite3.connect(get_state(half_done))) as connection, connection:
        connection.execute(change)
    executor = FakeExecutor()
    with pytest.raises(JobError, match=TOLD):
        run_job(half_done.with_name("in.jsonl"), half_done, executor)
    assert not half_done.exists()
    finish(half_done, uninterrupted, overwrite=True)


def test_lost_state_begins_again(
    half_done: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor]
) -> None:
    for content in (None, b""):
        state = get_state(half_done)
        state.unlink() if content is None else state.write_bytes(content)
        executor = finish(half_done, uninterrupted)
        assert executor.calls == uninterrupted[2].calls
        half_done.unlink()


@pytest.mark.parametrize("damage", [truncate, randomize, flip_one_bit, change_block])
def test_damaged_log_of_killed_job_loses_at_most_its_last_chunks(
    tmp_path: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor], damage: Damage
) -> None:
    folder, killed = tmp_path / "job", tmp_path / "killed"
    folder.mkdir()
    source, output = write_lines(folder / "in.jsonl", records(95)), folder / "out.jsonl"
    executor = FakeExecutor(fail_at=6)
    executor.before = lambda number: (
        shutil.copytree(get_state(output).parent, killed) if number == 5 else None
    )
    with pytest.raises(RuntimeError):
        run_job(source, output, executor)
    log = killed / f"{STATE_FILE}-wal"
    assert log.stat().st_size > 20_000
    nums_calls = set()
    for seed in range(10):
        shutil.rmtree(get_state(output).parent)
        shutil.copytree(killed, get_state(output).parent)
        damage(get_state(output).with_name(log.name), random.Random(seed))
        nums_calls.add(len(finish(output, uninterrupted).calls))
        output.unlink()
    assert nums_calls <= set(range(4, 11))
    assert 10 in nums_calls


def test_damaged_state_of_finished_job_is_told(
    half_done: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor]
) -> None:
    finish(half_done, uninterrupted)
    randomize(get_state(half_done), random.Random(0))
    with pytest.raises(JobError, match=TOLD):
        run_job(half_done.with_name("in.jsonl"), half_done, FakeExecutor())
    assert half_done.read_bytes() == uninterrupted[0]


@pytest.mark.parametrize("names", [["manifest.json"], ["chunks/000000.json.gz", "seen.sqlite"]])
def test_state_of_older_version_is_refused(
    half_done: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor], names: list[str]
) -> None:
    state = get_state(half_done)
    state.unlink()
    for name in names:
        (state.parent / name).parent.mkdir(exist_ok=True)
        (state.parent / name).write_text(json.dumps({"version": 2}))
    with pytest.raises(JobRefusedError, match=r"format 2 or older.*that began it, or .*overwrite"):
        run_job(half_done.with_name("in.jsonl"), half_done, FakeExecutor())
    finish(half_done, uninterrupted, overwrite=True)
    assert sorted(file.name for file in state.parent.iterdir()) == ["lock", STATE_FILE]


def test_state_of_newer_version_is_refused(
    half_done: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor]
) -> None:
    with contextlib.closing(sqlite3.connect(get_state(half_done))) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(JobRefusedError, match=r"format 9.*that began it, or .*--overwrite"):
        run_job(half_done.with_name("in.jsonl"), half_done, FakeExecutor())
    finish(half_done, uninterrupted, overwrite=True)


def test_leftover_of_kill_while_writing_is_removed(
    half_done: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor]
) -> None:
    half_done.with_name("out.jsonl.partial").write_bytes(b"half of")
    executor = finish(half_done, uninterrupted)
    assert executor.calls == uninterrupted[2].calls[6:]


def test_state_open_in_another_program_is_refused(half_done: Path) -> None:
    with contextlib.closing(sqlite3.connect(get_state(half_done))) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(JobRefusedError, match="in use by another program"):
            run_job(half_done.with_name("in.jsonl"), half_done, FakeExecutor())
