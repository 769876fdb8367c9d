"""Files of a job that were cut off, changed or left behind: noticed, told, made good."""

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
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Summary, FakeExecutor]:
    """Output, figures and calls of a job that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    carrier = FakeExecutor()
    source = write_lines(folder / "in.jsonl", records(95))
    summary = run_job(source, folder / "out.jsonl", carrier)
    return (folder / "out.jsonl").read_bytes(), summary, carrier


@pytest.fixture
def half_done(tmp_path: Path) -> Path:
    """The output of a job that ended after 6 of 10 chunks."""
    source = write_lines(tmp_path / "in.jsonl", records(95))
    with pytest.raises(RuntimeError):
        run_job(source, tmp_path / "out.jsonl", FakeExecutor(fail_at=6))
    assert len(list((tmp_path / "out.jsonl.job" / "chunks").iterdir())) == 6
    return tmp_path / "out.jsonl"


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))


def one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 0x01
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


DAMAGES = [cut_off, empty, garbage, one_byte, remove]


def finish(
    output: Path, whole: tuple[bytes, Summary, FakeExecutor]
) -> tuple[FakeExecutor, list[str]]:
    """Start again; the output and figures have to be those of an undisturbed job."""
    carrier, told = FakeExecutor(), []
    summary = run_job(output.with_name("in.jsonl"), output, carrier, told=told)
    assert output.read_bytes() == whole[0]
    assert comparable(summary) == comparable(whole[1])
    left = sorted(file.name for file in output.parent.iterdir())
    assert left == ["in.jsonl", "out.jsonl", "out.jsonl.job"]
    return carrier, told


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_chunk(
    half_done: Path, whole: tuple[bytes, Summary, FakeExecutor], damage: Damage
) -> None:
    """Its results are in the store of conversations still: nothing is scored again."""
    damage(half_done.with_name("out.jsonl.job") / "chunks" / "000003.json.gz")
    carrier, told = finish(half_done, whole)
    assert carrier.calls == whole[2].calls[6:]
    if damage is not remove:
        assert "000003.json.gz is damaged" in told[0]
    assert any(line.startswith("going on behind row 30") for line in told)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_store(
    half_done: Path, whole: tuple[bytes, Summary, FakeExecutor], damage: Damage
) -> None:
    """It is made again from the input and the chunks: nothing is scored again."""
    store = half_done.with_name("out.jsonl.job") / "seen.sqlite"
    assert not store.with_name("seen.sqlite-wal").exists()
    if damage is one_byte:
        with sqlite3.connect(store) as connection:
            connection.execute("UPDATE seen SET result = replace(result, '[', '[1')")
        connection.close()
        carrier = FakeExecutor()
        with pytest.raises(Exception, match="run the same command again"):
            run_job(half_done.with_name("in.jsonl"), half_done, carrier)
        assert not store.exists()
    else:
        damage(store)
    carrier, told = finish(half_done, whole)
    assert carrier.calls == whole[2].calls[6:]
    assert any("it is made again from the input and the chunks" in line for line in told)


@pytest.mark.parametrize("damage", DAMAGES)
def test_both(half_done: Path, whole: tuple[bytes, Summary, FakeExecutor], damage: Damage) -> None:
    folder = half_done.with_name("out.jsonl.job")
    remove(folder / "seen.sqlite")
    damage(folder / "chunks" / "000003.json.gz")
    carrier, _ = finish(half_done, whole)
    assert carrier.calls == whole[2].calls[3:]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_manifest(
    half_done: Path, whole: tuple[bytes, Summary, FakeExecutor], damage: Damage
) -> None:
    """Chunks say themselves which job they are of."""
    damage(half_done.with_name("out.jsonl.job") / "manifest.json")
    carrier, told = finish(half_done, whole)
    assert carrier.calls == whole[2].calls[6:]
    if damage is not remove:
        assert "manifest.json is damaged" in told[0]


def test_chunks_of_another_job_are_not_taken(half_done: Path) -> None:
    remove(half_done.with_name("out.jsonl.job") / "manifest.json")
    carrier = FakeExecutor()
    carrier.model = {"revision": "r2"}
    told: list[str] = []
    run_job(half_done.with_name("in.jsonl"), half_done, carrier, told=told)
    assert len(carrier.calls) == 10
    assert "000000.json.gz is damaged (it belongs to another job)" in told[0]


def test_what_a_kill_left_behind(
    half_done: Path, whole: tuple[bytes, Summary, FakeExecutor]
) -> None:
    folder = half_done.with_name("out.jsonl.job")
    for path in (
        half_done.with_name("out.jsonl.partial"),
        folder / "manifest.json.partial",
        folder / "chunks" / "000006.json.gz.partial",
    ):
        path.write_bytes(b"half of")
    (folder / "chunks" / "000009.json.gz").write_bytes(gzip.compress(b"{}"))
    carrier, _ = finish(half_done, whole)
    assert carrier.calls == whole[2].calls[6:]


def test_killed_between_the_store_and_the_chunk(
    tmp_path: Path,
    whole: tuple[bytes, Summary, FakeExecutor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The work is in the store: it is not done again, and counts as done once."""
    source = write_lines(tmp_path / "in.jsonl", records(95))
    write_chunk = serve.jobs.runner.write_chunk

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("serve.jobs.runner.write_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        run_job(source, tmp_path / "out.jsonl", FakeExecutor())
    monkeypatch.setattr("serve.jobs.runner.write_chunk", write_chunk)
    carrier, _ = finish(tmp_path / "out.jsonl", whole)
    assert carrier.calls == whole[2].calls[1:]
