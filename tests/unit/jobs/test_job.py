"""A job from start to end, and started again: rows, figures, refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from job_runs import FakeCarrier, comparable, records, reward_of, run_job, write_lines

from rm_core import Reward, ScoreError
from rm_core.conversations import Messages
from serve.jobs.errors import BadRowError, JobInputError, JobOutputError, JobRefusedError
from serve.jobs.inputs.opening import open_source
from serve.jobs.job import require_report
from serve.jobs.lock import locked
from serve.jobs.plan import Plan
from serve.jobs.stopping import Stopping
from serve.jobs.summary import Summary

TURNS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", records(95))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sent(carrier: FakeCarrier) -> list[str]:
    return [json.dumps(conversation) for call in carrier.calls for conversation in call]


def test_every_row_in_order_with_its_reward(source: Path, output: Path) -> None:
    carrier = FakeCarrier()
    summary = run_job(source, output, carrier)
    rows = read(output)
    assert [row["id"] for row in rows] == list(range(95))
    for row in rows:
        if "reward" in row:
            turns = row.get("messages") or [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["response"]},
            ]
            assert row["reward"] == reward_of(json.dumps(turns)).reward
        elif "rewards" in row:
            assert len(row["rewards"]) == 3
    assert summary.num_rows == 95
    assert summary.num_failed == sum("error" in row for row in rows) > 3
    assert set(summary.errors) == {"invalid_conversation", "conversation_too_long"}
    assert sorted(p.name for p in output.with_name("out.jsonl.job").iterdir()) == [
        "lock",
        "manifest.json",
    ]


def test_the_first_row_of_each_kind_of_error_is_told(source: Path, output: Path) -> None:
    summary = run_job(source, output, FakeCarrier())
    first: dict[str, int] = {}
    for number, row in enumerate(read(output)):
        if "error" in row:
            first.setdefault(row["error"]["code"], number)
    told = {code: text.split(":")[0] for code, text in summary.examples.items()}
    assert told == {code: f"row {number}" for code, number in first.items()}
    again = run_job(source, output, FakeCarrier())
    assert again.examples == summary.examples


def test_a_report_takes_the_place_of_nothing_else(source: Path, output: Path) -> None:
    plan = Plan(open_source(str(source)), output)
    page = source.with_name("page.html")
    require_report(page, plan)
    page.write_text("<!doctype html><p>old")
    require_report(page, plan)
    page.write_text("dear diary")
    for report in (source, output, page, source.with_name("none") / "page.html"):
        with pytest.raises(JobOutputError):
            require_report(report, plan)


def test_a_conversation_is_scored_once_in_the_whole_job(source: Path, output: Path) -> None:
    carrier = FakeCarrier()
    summary = run_job(source, output, carrier)
    texts = sent(carrier)
    assert len(set(texts)) == len(texts)
    computed = sum(reward_of(text).num_tokens for text in texts if "HUGE" not in text)
    assert summary.num_computed_tokens == computed
    assert summary.num_tokens == computed + summary.num_repeated_tokens
    assert summary.num_repeated_tokens > 0
    assert summary.num_shared_tokens == 0


def test_what_a_call_gets_depends_on_the_input_alone(source: Path, tmp_path: Path) -> None:
    """However late the answers come: chunks in flight own what they sent."""
    calls: list[list[list[Messages]]] = []
    for delay_s in (0.0, 0.01):
        carrier = FakeCarrier(delay_s)
        run_job(source, tmp_path / f"{delay_s}.jsonl", carrier)
        calls.append(carrier.calls)
    assert calls[0] == calls[1]


@pytest.mark.parametrize("fail_at", [0, 1, 4, 8])
def test_goes_on_where_it_ended(source: Path, tmp_path: Path, fail_at: int) -> None:
    whole = FakeCarrier()
    undisturbed = run_job(source, tmp_path / "whole.jsonl", whole)
    output = tmp_path / "out.jsonl"
    first, second = FakeCarrier(fail_at=fail_at), FakeCarrier()
    with pytest.raises(RuntimeError, match="the carrier failed"):
        run_job(source, output, first)
    assert not output.exists()
    summary = run_job(source, output, second)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert first.calls[:fail_at] + second.calls == whole.calls
    assert comparable(summary) == comparable(undisturbed)


def test_a_job_that_is_done_asks_nobody(source: Path, output: Path) -> None:
    summary = run_job(source, output, FakeCarrier())
    before = output.stat()
    again, told = FakeCarrier(), []
    assert run_job(source, output, again, told=told) == summary
    assert (again.num_asked, again.calls) == (0, [])
    assert output.stat() == before
    assert told == [f"{output} is done already"]


def test_an_output_that_changed_is_not_taken_for_done(source: Path, output: Path) -> None:
    run_job(source, output, FakeCarrier())
    content = output.read_bytes()
    output.write_bytes(content)  # the same, at another time
    run_job(source, output, FakeCarrier())
    output.write_bytes(content[:-2] + b" \n")
    with pytest.raises(JobRefusedError, match=r"out\.jsonl changed.*--overwrite"):
        run_job(source, output, FakeCarrier())
    output.unlink()
    with pytest.raises(JobRefusedError, match="is gone"):
        run_job(source, output, FakeCarrier())
    run_job(source, output, FakeCarrier(), overwrite=True)
    assert output.read_bytes() == content


def test_another_job_is_refused(source: Path, output: Path) -> None:
    with pytest.raises(RuntimeError):
        run_job(source, output, FakeCarrier(fail_at=3))
    other = FakeCarrier()
    other.model = {**other.model, "revision": "r2"}
    with pytest.raises(JobRefusedError, match='model\'s revision was "r1" and is "r2"'):
        run_job(source, output, other)
    with pytest.raises(JobRefusedError, match=r"--chunk-rows was 10 and is 20.*--truncation"):
        run_job(source, output, FakeCarrier(), chunk_rows=20, truncation="left")
    with pytest.raises(JobRefusedError, match="--limit was not given and is 5"):
        run_job(source, output, FakeCarrier(), limit=5)
    write_lines(source, records(94))
    with pytest.raises(JobRefusedError, match=r"in\.jsonl had \d+ bytes and has \d+"):
        run_job(source, output, FakeCarrier())
    carrier = FakeCarrier()
    assert run_job(source, output, carrier, overwrite=True).num_rows == 94
    assert len(carrier.calls) == 10


def test_the_same_content_at_another_time_is_the_same_input(source: Path, output: Path) -> None:
    with pytest.raises(RuntimeError):
        run_job(source, output, FakeCarrier(fail_at=3))
    text = source.read_text()
    source.write_text(text.replace("word1", "word2"))
    with pytest.raises(JobRefusedError, match=r"the content of .*in\.jsonl changed"):
        run_job(source, output, FakeCarrier())
    source.write_text(text)
    run_job(source, output, FakeCarrier())


def test_an_input_that_changes_under_way(source: Path, output: Path) -> None:
    carrier = FakeCarrier()

    def append(number: int) -> None:
        if number == 5:
            with source.open("a") as file:
                file.write(json.dumps({"messages": TURNS}) + "\n")

    carrier.before = append
    with pytest.raises(JobInputError, match=r"changed|had 95 rows"):
        run_job(source, output, carrier)
    assert not output.exists()


def test_places_where_no_output_can_be(source: Path, output: Path, tmp_path: Path) -> None:
    with pytest.raises(JobOutputError, match="there is no folder"):
        run_job(source, tmp_path / "no" / "out.jsonl", FakeCarrier())
    with pytest.raises(JobOutputError, match="is the input too"):
        run_job(source, source, FakeCarrier())
    output.write_text("mine")
    with pytest.raises(JobRefusedError, match="is there already"):
        run_job(source, output, FakeCarrier())
    assert output.read_text() == "mine"
    run_job(source, output, FakeCarrier(), overwrite=True)


def test_two_runs_refuse_each_other(source: Path, output: Path) -> None:
    folder = output.with_name(output.name + ".job")
    folder.mkdir()
    with (
        locked(folder / "lock"),
        pytest.raises(JobRefusedError, match=r"in use by process \d+ on"),
    ):
        run_job(source, output, FakeCarrier())
    run_job(source, output, FakeCarrier())


def test_fail_fast_names_the_row_and_keeps_what_was_before(source: Path, output: Path) -> None:
    rows = records(95)
    first = next(i for i, row in enumerate(rows) if i >= 30 and "text" in row)
    good = [row for row in rows[:first] if "text" not in row and row.get("prompt") != "HUGE"]
    good = [row for row in good if 5 not in row.get("responses", [])]
    write_lines(source, [*good, rows[first], *rows[first:]])
    with pytest.raises(BadRowError, match=rf"row {len(good)} .*no known shape"):
        run_job(source, output, FakeCarrier(), fail_fast=True)
    rest = FakeCarrier()
    told: list[str] = []
    run_job(source, output, rest, told=told)
    assert told[0].startswith(f"going on behind row {len(good) // 10 * 10}")
    assert read(output)[len(good)]["error"]["code"] == "invalid_conversation"


def test_limit(source: Path, output: Path) -> None:
    assert run_job(source, output, FakeCarrier(), limit=23).num_rows == 23
    assert [row["id"] for row in read(output)] == list(range(23))


def test_no_rows_at_all(source: Path, output: Path) -> None:
    source.write_text("")
    carrier = FakeCarrier()
    assert run_job(source, output, carrier).num_rows == 0
    assert output.read_bytes() == b""
    assert carrier.calls == []


class Sink:
    def __init__(self) -> None:
        self.rows: list[tuple[Any, int, str | None]] = []
        self.written: list[Summary] = []

    def add(
        self, shape: Any, results: Sequence[Reward | ScoreError], error: ScoreError | None
    ) -> None:
        self.rows.append((shape, len(results), error.code if error else None))

    def write(self, summary: Summary) -> None:
        self.written.append(summary)


def test_a_sink_hears_of_every_row(source: Path, output: Path) -> None:
    sink = Sink()
    summary = run_job(source, output, FakeCarrier(), sink=sink)
    assert sink.written == [summary]
    assert [code for _, _, code in sink.rows] == [
        row.get("error", {}).get("code") for row in read(output)
    ]
    assert {shape for shape, _, _ in sink.rows} == {"conversation", "pair", "group", None}


def test_stopped_after_what_is_in_flight(source: Path, output: Path) -> None:
    from serve.jobs.errors import JobStoppedError

    stopping = Stopping("")
    carrier = FakeCarrier()

    def stop(number: int) -> None:
        if number == 2:
            stopping.asked = 2

    carrier.before = stop
    with pytest.raises(JobStoppedError):
        run_job(source, output, carrier, stopping=stopping)
    kept = len(list((output.with_name("out.jsonl.job") / "chunks").iterdir()))
    assert 3 <= kept <= 5
    rest = FakeCarrier()
    run_job(source, output, rest)
    assert len(rest.calls) == 10 - kept
