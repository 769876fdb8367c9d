"""`--retry-errors`: only rows with errors are scored again, and a kill loses nothing."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from image_files import encode_image, make_image
from job_runs import (
    FakeExecutor,
    comparable,
    count_chunks,
    records,
    reward_of,
    run_job,
    write_lines,
)
from job_service import Service
from waiting import PATIENCE_S

from rm_core import ScoreError
from serve.cli.main import main
from serve.errors import BadRowError, JobRefusedError, JobStoppedError
from serve.jobs import command
from serve.jobs.executors.base import ScoreBatchResult
from serve.jobs.report import Report
from serve.jobs.spec import JobSpec
from serve.shutdown import GracefulShutdown

_FORK = multiprocessing.get_context("fork")
LOST = ScoreError("lost_replicas", "two replicas were lost")


class FlakyExecutor(FakeExecutor):
    """Loses about a quarter of the conversations: those whose reward has a certain last digit."""

    def _score(
        self, number: int, conversations: Sequence[object], texts: list[str]
    ) -> ScoreBatchResult:
        scored = super()._score(number, conversations, texts)
        results = [
            LOST if hash_text(text) % 4 == 0 else result
            for text, result in zip(texts, scored.results, strict=True)
        ]
        return ScoreBatchResult(results, scored.num_computed_tokens)


def hash_text(text: str) -> int:
    return sum(text.encode())


def read_rows(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines()


def has_error(line: bytes) -> bool:
    return "error" in json.loads(line)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", records(300))


@pytest.fixture
def whole(source: Path, tmp_path: Path) -> bytes:
    """The output of a job without lost conversations."""
    run_job(source, tmp_path / "whole.jsonl", FakeExecutor())
    return (tmp_path / "whole.jsonl").read_bytes()


def test_only_rows_with_errors_are_scored_again(source: Path, tmp_path: Path, whole: bytes) -> None:
    output, notices = tmp_path / "out.jsonl", list[str]()
    expected = run_job(source, tmp_path / "expected.jsonl", FakeExecutor())
    before = run_job(source, output, FlakyExecutor())
    old = read_rows(output)
    assert before.errors["lost_replicas"] > 20
    assert output.read_bytes() != whole

    executor = FakeExecutor()
    report = Report(tmp_path / "report.html", "out")
    summary = run_job(source, output, executor, retry_errors=True, notices=notices, report=report)
    assert output.read_bytes() == whole
    for line, former in zip(read_rows(output), old, strict=True):
        assert has_error(former) or line == former
    scored = [json.dumps(one) for call in executor.calls for one in call]
    assert len(set(scored)) == len(scored)
    # Each was lost, or its row has another error that scoring may mend.
    assert all(hash_text(text) % 4 == 0 or "HUGE" in text for text in scored)

    assert summary.num_retried == before.num_failed
    assert summary.num_mended == before.num_failed - expected.num_failed > 0
    counts = {"num_retried": 0, "num_mended": 0, "num_computed_tokens": 0, "seconds": 0}
    assert {**summary.as_json(), **counts} == {**expected.as_json(), **counts}
    assert summary.num_computed_tokens - before.num_computed_tokens == sum(
        reward_of(text).num_tokens for text in scored if "HUGE" not in text
    )
    text = "\n".join(notices)
    assert f"rows with an error that were scored again: {summary.num_retried};" in text
    assert "conversation_too_long, invalid_conversation: these errors follow from" in text
    page = (tmp_path / "report.html").read_text()
    assert "mended" in page
    assert "with an error again" in page

    # The retry is over: the same job is finished, and scores nothing.
    after = run_job(source, output, FakeExecutor(fail_at=0))
    assert comparable(after) == comparable(summary)


@pytest.mark.parametrize("ending", ["parquet", "jsonl.gz"])
def test_other_outputs_are_replaced_too(tmp_path: Path, ending: str) -> None:
    rows = [row for row in records(300) if "responses" not in row]
    source = write_lines(tmp_path / "in.jsonl", rows)
    whole, output = tmp_path / f"whole.{ending}", tmp_path / f"out.{ending}"
    run_job(source, whole, FakeExecutor())
    run_job(source, output, FlakyExecutor())
    assert output.read_bytes() != whole.read_bytes()
    run_job(source, output, FakeExecutor(), retry_errors=True)
    assert output.read_bytes() == whole.read_bytes()


def test_interrupted_job_is_retried_and_then_finished(
    source: Path, tmp_path: Path, whole: bytes
) -> None:
    output = tmp_path / "out.jsonl"
    with pytest.raises(RuntimeError):
        run_job(source, output, FlakyExecutor(fail_at=8))
    num_chunks = count_chunks(output)
    assert 0 < num_chunks < 30
    executor, notices = FakeExecutor(), list[str]()
    summary = run_job(source, output, executor, retry_errors=True, notices=notices)
    assert output.read_bytes() == whole
    assert any(line.startswith("resuming at row") for line in notices)
    assert 0 < summary.num_retried < summary.num_rows


def test_repeated_retry_counts_its_own_rows(source: Path, tmp_path: Path, whole: bytes) -> None:
    output = tmp_path / "out.jsonl"
    first = run_job(source, output, FlakyExecutor())
    second = run_job(source, output, FlakyExecutor(), retry_errors=True)
    assert (second.num_retried, second.num_mended) == (first.num_failed, 0)
    assert second.errors == first.errors
    third = run_job(source, output, FakeExecutor(), retry_errors=True)
    assert (third.num_retried, third.num_failed) == (
        first.num_failed,
        first.num_failed - third.num_mended,
    )
    assert output.read_bytes() == whole


def retry_in_child(source: Path, output: Path, calls: Path) -> None:
    """Retry in a process that records each call of its executor."""
    os.setpgrp()
    executor = FakeExecutor(delay_s=0.01)

    def record_call(number: int) -> None:
        with calls.open("a") as file:
            file.write(f"{len(executor.calls[number])}\n")

    executor.before = record_call
    run_job(source, output, executor, retry_errors=True)
    os._exit(0)


def test_killed_retry_continues_and_scores_nothing_twice(
    source: Path, tmp_path: Path, whole: bytes
) -> None:
    output, calls = tmp_path / "out.jsonl", tmp_path / "calls"
    calls.touch()
    before = run_job(source, output, FlakyExecutor())
    finished = output.read_bytes()
    num_calls_needed = count_retry_calls(source, output, tmp_path)
    rng = random.Random(5)
    num_kills = 0
    for _ in range(40):
        process = _FORK.Process(target=retry_in_child, args=(source, output, calls))
        process.start()
        num_before = len(calls.read_text().splitlines())
        wanted = num_before + rng.randrange(1, 4)
        while process.is_alive() and len(calls.read_text().splitlines()) < wanted:
            time.sleep(0.002)
        process.kill()
        process.join(PATIENCE_S)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        num_kills += 1
        # The old output stays until the new one is whole.
        assert output.read_bytes() in (finished, whole)
    assert num_kills > 2
    summary = run_job(source, output, FakeExecutor(), retry_errors=True)
    assert output.read_bytes() == whole
    # At most the calls in flight at each kill were repeated.
    num_calls = len(calls.read_text().splitlines())
    assert num_calls <= num_calls_needed + 3 * num_kills
    assert summary.num_failed < before.num_failed


def count_retry_calls(source: Path, output: Path, tmp_path: Path) -> int:
    """Return the number of calls of a retry that is not interrupted."""
    executor = FakeExecutor()
    run_job(source, copy_job(output, tmp_path / "copy"), executor, retry_errors=True)
    return len(executor.calls)


def copy_job(output: Path, folder: Path) -> Path:
    """Copy the state of a job, and its output if it has one; return the name of the copy."""
    copy = folder / output.name
    shutil.copytree(f"{output}.job", f"{copy}.job")
    if output.exists():
        shutil.copy2(output, copy)
    return copy


def test_retry_killed_before_any_statement_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Continue from the files that a kill leaves before each statement of SQLite."""
    source = write_lines(tmp_path / "in.jsonl", records(40))
    run_job(source, tmp_path / "whole.jsonl", FakeExecutor())
    whole = (tmp_path / "whole.jsonl").read_bytes()
    output = tmp_path / "out.jsonl"
    folder = output.with_name("out.jsonl.job")
    first = run_job(source, output, FlakyExecutor())
    files_left: dict[tuple[tuple[Path, bytes, tuple[int, int]], ...], None] = {}
    connect = sqlite3.connect

    def read_files(_: str) -> None:
        files = [file for file in (output, *folder.iterdir()) if file.exists()]
        times = [(file.stat().st_atime_ns, file.stat().st_mtime_ns) for file in files]
        contents = [file.read_bytes() for file in files]
        files_left[tuple(zip(files, contents, times, strict=True))] = None

    def connect_and_watch(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(read_files)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect_and_watch)
        run_job(source, output, FakeExecutor(), retry_errors=True)
    assert len(files_left) > 10
    num_refused = 0
    for files in files_left:
        for retry in (False, True):
            output.unlink()
            shutil.rmtree(folder)
            folder.mkdir(0o700)
            for file, content, times in files:
                file.write_bytes(content)
                os.utime(file, ns=times)
            if retry:
                summary = run_job(source, output, FakeExecutor(), retry_errors=True)
                assert output.read_bytes() == whole
                assert summary.num_failed < first.num_failed
                continue
            # Without the option: the old end, the new one, or what to do.
            try:
                run_job(source, output, FakeExecutor(fail_at=0))
            except JobRefusedError:
                num_refused += 1
    assert num_refused > 3


def test_stopped_retry_continues(source: Path, tmp_path: Path, whole: bytes) -> None:
    output = tmp_path / "out.jsonl"
    run_job(source, output, FlakyExecutor())
    shutdown, executor = GracefulShutdown(""), FakeExecutor()

    def stop(number: int) -> None:
        if number == 4:
            shutdown.received_signal = signal.SIGTERM

    executor.before = stop
    with pytest.raises(JobStoppedError):
        run_job(source, output, executor, retry_errors=True, shutdown=shutdown)
    with pytest.raises(JobRefusedError, match="a retry of this job was interrupted"):
        run_job(source, output, FakeExecutor())
    run_job(source, output, FakeExecutor(), retry_errors=True)
    assert output.read_bytes() == whole


def test_retry_takes_rewards_of_other_jobs_and_keeps_its_own(
    source: Path, tmp_path: Path, whole: bytes
) -> None:
    output, cache, notices = tmp_path / "out.jsonl", tmp_path / "cache.sqlite", list[str]()
    before = run_job(source, output, FlakyExecutor(), reward_cache=cache)
    # Another job scores half of the rows after this one has begun.
    other = FakeExecutor()
    run_job(source, tmp_path / "other.jsonl", other, reward_cache=cache, limit=150)
    lost = [one for call in other.calls for one in call if "HUGE" not in json.dumps(one)]
    assert len(lost) > 10
    executor = FakeExecutor()
    summary = run_job(
        source, output, executor, retry_errors=True, reward_cache=cache, notices=notices
    )
    assert output.read_bytes() == whole
    scored = [one for call in executor.calls for one in call]
    assert any("HUGE" not in json.dumps(one) for one in scored)
    assert not any(one in lost for one in scored)
    assert summary.num_reused_rewards == len(lost)
    assert summary.num_computed_tokens > before.num_computed_tokens
    assert summary.num_shared_tokens == 0  # this executor shares nothing: the rest adds up
    assert not any("last bits" in line for line in notices)
    # What the retry scored is in the file as well.
    last = run_job(source, tmp_path / "last.jsonl", FakeExecutor(), reward_cache=cache)
    assert (tmp_path / "last.jsonl").read_bytes() == whole
    assert last.num_computed_tokens == 0


@pytest.mark.parametrize("is_finished", [True, False])
def test_resumed_retry_reads_what_the_reward_cache_had_when_it_began(
    source: Path, tmp_path: Path, whole: bytes, is_finished: bool
) -> None:
    output, cache, notices = tmp_path / "out.jsonl", tmp_path / "cache.sqlite", list[str]()
    with contextlib.nullcontext() if is_finished else pytest.raises(RuntimeError):
        first = FlakyExecutor(fail_at=None if is_finished else 12)
        run_job(source, output, first, reward_cache=cache)
    run_job(source, tmp_path / "other.jsonl", FakeExecutor(), reward_cache=cache, limit=30)
    caches = [cache, tmp_path / "copy.sqlite"]
    caches[1].write_bytes(cache.read_bytes())
    copy = copy_job(output, tmp_path / "copy")
    uninterrupted, begun, rest = FakeExecutor(), FakeExecutor(fail_at=4), FakeExecutor()
    run_job(source, copy, uninterrupted, retry_errors=True, reward_cache=caches[1])
    with pytest.raises(RuntimeError):
        run_job(source, output, begun, retry_errors=True, reward_cache=cache)
    # Another job adds all rewards before the retry resumes.
    run_job(source, tmp_path / "last.jsonl", FakeExecutor(), reward_cache=cache)
    run_job(source, output, rest, retry_errors=True, reward_cache=cache, notices=notices)
    assert [*begun.calls[:4], *rest.calls] == uninterrupted.calls
    assert output.read_bytes() == copy.read_bytes() == whole
    assert not any("last bits" in line for line in notices)


def test_fail_fast_ends_a_retry_at_the_first_error(tmp_path: Path) -> None:
    rows = [{"prompt": "2+2?", "response": "HUGE"}, {"prompt": "2+2?", "response": "4"}]
    source, output = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    run_job(source, output, FakeExecutor())
    with pytest.raises(BadRowError, match="row 0 "):
        run_job(source, output, FakeExecutor(), retry_errors=True, fail_fast=True)


def test_job_without_errors_is_left_alone(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "2+2?", "response": "4"}])
    output, notices = tmp_path / "out.jsonl", list[str]()
    run_job(source, output, FakeExecutor())
    file = output.stat()
    executor = FakeExecutor(fail_at=0)
    summary = run_job(source, output, executor, retry_errors=True, notices=notices)
    assert notices == [
        "no row has an error, so there is nothing to retry",
        f"{output} is complete already",
    ]
    assert (executor.calls, summary.num_failed, summary.num_retried) == ([], 0, 0)
    assert output.stat().st_mtime_ns == file.st_mtime_ns


def test_retry_goes_on_with_unfinished_job(tmp_path: Path) -> None:
    rows = [{"prompt": "2+2?", "response": str(number)} for number in range(30)]
    source, output = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    with pytest.raises(RuntimeError):
        run_job(source, output, FakeExecutor(fail_at=1))
    notices = list[str]()
    summary = run_job(source, output, FakeExecutor(), retry_errors=True, notices=notices)
    assert notices[0] == "the job is not finished and no row has an error so far; it goes on"
    assert summary.num_scored == 30


def test_retry_needs_the_job(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with pytest.raises(JobRefusedError, match="is known, so nothing can be retried"):
        run_job(source, output, FakeExecutor(), retry_errors=True)
    assert not output.exists()


CHANGES: dict[str, tuple[Callable[[Path, FakeExecutor], object], dict[str, Any], str]] = {
    "model": (lambda _, executor: executor.model.update(revision="r2"), {}, "the model's revision"),
    "option": (lambda *_: None, {"truncation": "left"}, "--truncation was"),
    "output": (lambda output, _: output.write_text("mine\n"), {}, "since then"),
    "removed": (lambda output, _: output.unlink(), {}, "was removed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_retry_is_refused_after_a_change(source: Path, tmp_path: Path, change: str) -> None:
    output, executor = tmp_path / "out.jsonl", FakeExecutor()
    run_job(source, output, FlakyExecutor())
    apply, options, expected_text = CHANGES[change]
    apply(output, executor)
    with pytest.raises(JobRefusedError, match=expected_text):
        run_job(source, output, executor, retry_errors=True, **options)
    assert executor.calls == []


def test_mended_file_of_an_image_mends_its_rows(tmp_path: Path) -> None:
    parts = [{"type": "image", "image": "1.png"}, {"type": "text", "text": "What is it?"}]
    row = {"prompt": [{"role": "user", "content": parts}], "response": "A cat."}
    source = write_lines(tmp_path / "in.jsonl", [row, {"prompt": "2+2?", "response": "4"}])
    output = tmp_path / "out.jsonl"
    before = run_job(source, output, FakeExecutor(max_image_bytes=2**20))
    assert before.errors == {"invalid_image": 1}
    (tmp_path / "1.png").write_bytes(encode_image(make_image()))
    summary = run_job(source, output, FakeExecutor(max_image_bytes=2**20), retry_errors=True)
    assert (summary.num_failed, summary.num_mended) == (0, 1)


@pytest.fixture
def services() -> Iterator[tuple[Service, Service]]:
    both = Service(), Service()
    yield both
    for one in both:
        one.stop()


def test_command_retries_with_another_address(
    services: tuple[Service, Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy, healthy = services
    score = lossy.score
    error = {"error": {"code": "lost_replicas", "message": "two replicas were lost"}}
    monkeypatch.setattr(
        lossy,
        "score",
        lambda chats: [
            error if "7" in chat[-1]["content"] else one
            for chat, one in zip(chats, score(chats), strict=True)
        ],
    )
    rows = [{"prompt": "2+2?", "response": f"answer {n}"} for n in range(20)]
    source, output = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    monkeypatch.setattr(command, "JobSpec", partial(JobSpec, chunk_rows=5))

    def run(url: str, *options: str) -> Any:
        arguments = ["score", str(source), "-o", str(output), "--url", url, *options]
        return CliRunner().invoke(main, arguments)

    assert run(healthy.url, "--retry-errors").exit_code == 1
    done = run(lossy.url)
    assert done.exit_code == 3
    again = run(lossy.url, "--retry-errors", "--timeout-s", "50")
    assert again.exit_code == 3
    assert "scored again: 2; with rewards now: 0; with an error again: 2" in again.output
    mended = run(healthy.url, "--retry-errors", "--retry-s", "3")
    assert mended.exit_code == 0, mended.output
    assert "scored again: 2; with rewards now: 2; with an error again: 0" in mended.output
    assert [json.loads(line)["reward"] for line in read_rows(output)] == [
        float(len(row["response"])) for row in rows
    ]
    assert healthy.requests == [1, 1]
    for other in ("--dry-run", "--overwrite"):
        assert run(healthy.url, "--retry-errors", other).exit_code == 2
