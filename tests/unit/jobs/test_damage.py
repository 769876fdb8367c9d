"""State files of a job that were truncated, changed or left behind: found, reported, repaired."""

from __future__ import annotations

import gzip
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from job_runs import FakeExecutor, comparable, records, run_job, write_lines

import serve.jobs.runner
from serve.jobs.summary import Summary

Damage = Callable[[Path], None]


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
    assert len(list((tmp_path / "out.jsonl.job" / "chunks").iterdir())) == 6
    return tmp_path / "out.jsonl"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def randomize(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 0x01
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


DAMAGES = [truncate, empty, randomize, flip_one_bit, remove]


def finish(
    output: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor]
) -> tuple[FakeExecutor, list[str]]:
    """Resume the job; check that output and summary equal those of an uninterrupted job."""
    executor, notices = FakeExecutor(), []
    summary = run_job(output.with_name("in.jsonl"), output, executor, notices=notices)
    assert output.read_bytes() == uninterrupted[0]
    assert comparable(summary) == comparable(uninterrupted[1])
    remaining = sorted(file.name for file in output.parent.iterdir())
    assert remaining == ["in.jsonl", "out.jsonl", "out.jsonl.job"]
    return executor, notices


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_chunk_is_restored_from_store(
    half_done: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor], damage: Damage
) -> None:
    """The chunk's results are still in the dedup store, so nothing is scored again."""
    damage(half_done.with_name("out.jsonl.job") / "chunks" / "000003.json.gz")
    executor, notices = finish(half_done, uninterrupted)
    assert executor.calls == uninterrupted[2].calls[6:]
    if damage is not remove:
        assert "000003.json.gz is damaged" in notices[0]
    assert any(line.startswith("resuming after row 30") for line in notices)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_store_is_rebuilt(
    half_done: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor], damage: Damage
) -> None:
    """The store is rebuilt from the input and the chunks, so nothing is scored again."""
    store = half_done.with_name("out.jsonl.job") / "seen.sqlite"
    assert not store.with_name("seen.sqlite-wal").exists()
    if damage is flip_one_bit:
        with sqlite3.connect(store) as connection:
            connection.execute("UPDATE seen SET result = replace(result, '[', '[1')")
        connection.close()
        executor = FakeExecutor()
        with pytest.raises(Exception, match="run the same command again"):
            run_job(half_done.with_name("in.jsonl"), half_done, executor)
        assert not store.exists()
    else:
        damage(store)
    executor, notices = finish(half_done, uninterrupted)
    assert executor.calls == uninterrupted[2].calls[6:]
    assert any("it is rebuilt from the input and the chunks" in line for line in notices)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_chunk_without_store_is_scored_again(
    half_done: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor], damage: Damage
) -> None:
    folder = half_done.with_name("out.jsonl.job")
    remove(folder / "seen.sqlite")
    damage(folder / "chunks" / "000003.json.gz")
    executor, _ = finish(half_done, uninterrupted)
    assert executor.calls == uninterrupted[2].calls[3:]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_manifest_is_written_again(
    half_done: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor], damage: Damage
) -> None:
    """Chunks carry the id of their job, so a lost manifest loses no work."""
    damage(half_done.with_name("out.jsonl.job") / "manifest.json")
    executor, notices = finish(half_done, uninterrupted)
    assert executor.calls == uninterrupted[2].calls[6:]
    if damage is not remove:
        assert "manifest.json is damaged" in notices[0]


def test_chunks_of_another_job_are_not_reused(half_done: Path) -> None:
    remove(half_done.with_name("out.jsonl.job") / "manifest.json")
    executor = FakeExecutor()
    executor.model = {"revision": "r2"}
    notices: list[str] = []
    run_job(half_done.with_name("in.jsonl"), half_done, executor, notices=notices)
    assert len(executor.calls) == 10
    assert "000000.json.gz is damaged (it belongs to another job)" in notices[0]


def test_leftovers_of_kill_are_removed(
    half_done: Path, uninterrupted: tuple[bytes, Summary, FakeExecutor]
) -> None:
    folder = half_done.with_name("out.jsonl.job")
    for path in (
        half_done.with_name("out.jsonl.partial"),
        folder / "manifest.json.partial",
        folder / "chunks" / "000006.json.gz.partial",
    ):
        path.write_bytes(b"half of")
    (folder / "chunks" / "000009.json.gz").write_bytes(gzip.compress(b"{}"))
    executor, _ = finish(half_done, uninterrupted)
    assert executor.calls == uninterrupted[2].calls[6:]


def test_kill_between_store_and_chunk_rescores_nothing(
    tmp_path: Path,
    uninterrupted: tuple[bytes, Summary, FakeExecutor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The results are in the store, so they are not scored again, and count once."""
    source = write_lines(tmp_path / "in.jsonl", records(95))
    write_chunk = serve.jobs.runner.write_chunk

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("serve.jobs.runner.write_chunk", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_job(source, tmp_path / "out.jsonl", FakeExecutor())
    monkeypatch.setattr("serve.jobs.runner.write_chunk", write_chunk)
    executor, _ = finish(tmp_path / "out.jsonl", uninterrupted)
    assert executor.calls == uninterrupted[2].calls[1:]
