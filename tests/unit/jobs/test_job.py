"""A job from start to end, and resumed: rows, summaries, refusals."""

from __future__ import annotations

import gzip
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_runs import (
    FakeExecutor,
    comparable,
    count_chunks,
    records,
    reward_of,
    run_job,
    write_lines,
)

from rm_core.inputs.conversations import Messages
from serve.cli.main import main
from serve.errors import BadRowError, JobInputError, JobOutputError, JobRefusedError
from serve.jobs.inputs import json_rows
from serve.jobs.inputs.source import open_source
from serve.jobs.manifest import require_compatible
from serve.jobs.output import Output
from serve.jobs.report import Report
from serve.jobs.row_results import RowResults
from serve.jobs.spec import JobSpec, require_report_path
from serve.jobs.store import open_store
from serve.jobs.summary import Summary, format_summary
from serve.shutdown import GracefulShutdown

TURNS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", records(95))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def get_scored_texts(executor: FakeExecutor) -> list[str]:
    return [json.dumps(conversation) for call in executor.calls for conversation in call]


def test_output_has_every_row_in_order_with_reward(source: Path, output: Path) -> None:
    executor = FakeExecutor()
    summary = run_job(source, output, executor)
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
        "state.sqlite",
    ]


def test_summary_has_first_row_of_each_error_code(source: Path, output: Path) -> None:
    summary = run_job(source, output, FakeExecutor())
    first: dict[str, int] = {}
    for number, row in enumerate(read(output)):
        if "error" in row:
            first.setdefault(row["error"]["code"], number)
    examples = {code: text.split(":")[0] for code, text in summary.examples.items()}
    assert examples == {code: f"row {number}" for code, number in first.items()}
    again = run_job(source, output, FakeExecutor())
    assert again.examples == summary.examples


def test_report_does_not_replace_other_files(source: Path, output: Path) -> None:
    spec = JobSpec(open_source(str(source)), Output.parse(output))
    page = source.with_name("page.html")
    require_report_path(page, spec)
    page.write_text("<!doctype html><p>old")
    require_report_path(page, spec)
    page.write_text("dear diary")
    for report in (source, output, page, source.with_name("none") / "page.html"):
        with pytest.raises(JobOutputError):
            require_report_path(report, spec)


def test_repeated_conversation_is_scored_once_per_job(source: Path, output: Path) -> None:
    executor = FakeExecutor()
    summary = run_job(source, output, executor)
    texts = get_scored_texts(executor)
    assert len(set(texts)) == len(texts)
    computed = sum(reward_of(text).num_tokens for text in texts if "HUGE" not in text)
    assert summary.num_computed_tokens == computed
    assert summary.num_tokens == computed + summary.num_repeated_tokens
    assert summary.num_repeated_tokens > 0
    assert summary.num_shared_tokens == 0


def test_calls_depend_only_on_input(source: Path, tmp_path: Path) -> None:
    """Calls do not depend on the delay of results: chunks in flight own their conversations."""
    calls: list[list[list[Messages]]] = []
    for delay_s in (0.0, 0.01):
        executor = FakeExecutor(delay_s)
        run_job(source, tmp_path / f"{delay_s}.jsonl", executor)
        calls.append(executor.calls)
    assert calls[0] == calls[1]


@pytest.mark.parametrize("fail_at", [0, 1, 4, 8])
def test_failed_job_resumes_where_it_ended(source: Path, tmp_path: Path, fail_at: int) -> None:
    whole = FakeExecutor()
    uninterrupted = run_job(source, tmp_path / "whole.jsonl", whole)
    output = tmp_path / "out.jsonl"
    first, second = FakeExecutor(fail_at=fail_at), FakeExecutor()
    with pytest.raises(RuntimeError, match="the executor failed"):
        run_job(source, output, first)
    assert not output.exists()
    summary = run_job(source, output, second)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert first.calls[:fail_at] + second.calls == whole.calls
    assert comparable(summary) == comparable(uninterrupted)


def test_finished_job_does_not_resolve_identity(source: Path, output: Path) -> None:
    summary = run_job(source, output, FakeExecutor())
    before = output.stat()
    again, notices = FakeExecutor(), []
    assert run_job(source, output, again, notices=notices) == summary
    assert (again.num_asked, again.calls) == (0, [])
    assert output.stat() == before
    assert notices == [f"{output} is complete already"]


def test_changed_output_of_finished_job_is_refused(source: Path, output: Path) -> None:
    run_job(source, output, FakeExecutor())
    content = output.read_bytes()
    output.write_bytes(content)  # same content, new modification time
    run_job(source, output, FakeExecutor())
    output.write_bytes(content[:-2] + b" \n")
    with pytest.raises(JobRefusedError, match=r"out\.jsonl changed.*--overwrite"):
        run_job(source, output, FakeExecutor())
    output.unlink()
    with pytest.raises(JobRefusedError, match="was removed"):
        run_job(source, output, FakeExecutor())
    run_job(source, output, FakeExecutor(), overwrite=True)
    assert output.read_bytes() == content


def test_job_with_other_model_options_or_input_is_refused(source: Path, output: Path) -> None:
    with pytest.raises(RuntimeError):
        run_job(source, output, FakeExecutor(fail_at=3))
    other = FakeExecutor()
    other.model = {**other.model, "revision": "r2"}
    with pytest.raises(JobRefusedError, match='model\'s revision was "r1" and is "r2"'):
        run_job(source, output, other)
    with pytest.raises(JobRefusedError, match=r"rows in a chunk was 10 and is 20.*--truncation"):
        run_job(source, output, FakeExecutor(), chunk_rows=20, truncation="left")
    with pytest.raises(JobRefusedError, match="--limit was not given and is 5"):
        run_job(source, output, FakeExecutor(), limit=5)
    write_lines(source, records(94))
    with pytest.raises(JobRefusedError, match=r"in\.jsonl had \d+ bytes and has \d+"):
        run_job(source, output, FakeExecutor())
    executor = FakeExecutor()
    assert run_job(source, output, executor, overwrite=True).num_rows == 94
    assert len(executor.calls) == 10


@pytest.mark.parametrize("is_service_first", [False, True])
def test_other_way_of_scoring_is_told_in_one_clause(
    source: Path, output: Path, is_service_first: bool
) -> None:
    local = {name: "auto" for name in ("revision", "dtype", "device", "attention", "max_length")}
    service = {"fingerprint": {"revision": "r1"}, "encoding_sha256": "e", "max_length": 9}
    ways: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        (local, {"model": "demo", "ray": False}, "--model demo"),
        (service, {"urls": ["http://a", "http://b"], "model": None}, "--url http://a, http://b"),
    ]
    (first, first_spec, before), (second, second_spec, now) = ways[:: -1 if is_service_first else 1]
    executor, other = FakeExecutor(fail_at=3), FakeExecutor()
    executor.model, other.model = first, second
    with pytest.raises(RuntimeError):
        run_job(source, output, executor, model_spec=first_spec)
    with pytest.raises(JobRefusedError) as caught:
        run_job(source, output, other, model_spec=second_spec)
    assert caught.value.detail == (
        f"the job of this output began differently: rewards came from {before} and would now come "
        f"from {now}. Use the same input, model and options to resume the job, give another "
        "output, or start over with --overwrite"
    )


def test_other_model_of_service_is_told_by_what_differs(source: Path, output: Path) -> None:
    fingerprint = {"revision": "r1", "template_sha256": "t" * 64, "dtype": "float32"}
    executor, other = FakeExecutor(fail_at=3), FakeExecutor()
    executor.model = {"fingerprint": fingerprint, "encoding_sha256": "e"}
    other.model = {"fingerprint": {**fingerprint, "dtype": "bfloat16"}, "encoding_sha256": "e"}
    with pytest.raises(RuntimeError):
        run_job(source, output, executor)
    says = r'differently: the model\'s dtype was "float32" and is "bfloat16"\. Use'
    with pytest.raises(JobRefusedError, match=says):
        run_job(source, output, other)
    other = FakeExecutor()
    other.model = {"fingerprint": dict.fromkeys("abcde", "x"), "encoding_sha256": "e"}
    with pytest.raises(JobRefusedError, match=r"model's c was [^;]*; 5 more of the model\. Use"):
        run_job(source, output, other)


def test_refusal_names_only_options_that_exist(source: Path, output: Path) -> None:
    with pytest.raises(RuntimeError):
        run_job(source, output, FakeExecutor(fail_at=3))
    spec = JobSpec(open_source(str(source)), Output.parse(output))
    with open_store(spec) as store:
        manifest = store.manifest
    assert manifest
    changed = replace(manifest, options=dict.fromkeys(spec.options, "other"))
    with pytest.raises(JobRefusedError) as caught:
        require_compatible(changed, spec.source.files, None, spec)
    named = re.findall(r"--[a-z-]+(?= was)", caught.value.detail)
    assert len(named) == len(spec.options) - 1  # all but the rows in a chunk
    command = main.commands["score"]  # type: ignore[attr-defined]
    assert {option for option in named} <= {o for p in command.params for o in p.opts}


def test_input_with_new_mtime_and_same_content_is_accepted(source: Path, output: Path) -> None:
    with pytest.raises(RuntimeError):
        run_job(source, output, FakeExecutor(fail_at=3))
    text = source.read_text()
    source.write_text(text.replace("word1", "word2"))
    with pytest.raises(JobRefusedError, match=r"the content of .*in\.jsonl changed"):
        run_job(source, output, FakeExecutor())
    source.write_text(text)
    run_job(source, output, FakeExecutor())


def test_input_that_changes_during_job_is_refused(source: Path, output: Path) -> None:
    executor = FakeExecutor()

    def append(number: int) -> None:
        if number == 5:
            with source.open("a") as file:
                file.write(json.dumps({"messages": TURNS}) + "\n")

    executor.before = append
    with pytest.raises(JobInputError, match=r"changed|had 95 rows"):
        run_job(source, output, executor)
    assert not output.exists()


def test_impossible_outputs_are_refused(source: Path, output: Path, tmp_path: Path) -> None:
    with pytest.raises(JobOutputError, match=r"folder .* does not exist"):
        run_job(source, tmp_path / "no" / "out.jsonl", FakeExecutor())
    with pytest.raises(JobOutputError, match="is also the input"):
        run_job(source, source, FakeExecutor())
    output.write_text("mine")
    with pytest.raises(JobRefusedError, match="exists, and no job is known"):
        run_job(source, output, FakeExecutor())
    assert output.read_text() == "mine"
    run_job(source, output, FakeExecutor(), overwrite=True)


def test_second_run_is_refused_while_first_holds_lock(source: Path, output: Path) -> None:
    spec = JobSpec(open_source(str(source)), Output.parse(output))
    says = rf"in use by process {os.getpid()} on"
    for overwrite in (False, True):
        with open_store(spec), pytest.raises(JobRefusedError, match=says):
            run_job(source, output, FakeExecutor(), overwrite=overwrite)
    run_job(source, output, FakeExecutor())


def test_fail_fast_names_row_and_keeps_earlier_chunks(source: Path, output: Path) -> None:
    rows = records(95)
    first = next(i for i, row in enumerate(rows) if i >= 30 and "text" in row)
    good = [row for row in rows[:first] if "text" not in row and row.get("prompt") != "HUGE"]
    good = [row for row in good if 5 not in row.get("responses", [])]
    write_lines(source, [*good, rows[first], *rows[first:]])
    with pytest.raises(BadRowError, match=rf"row {len(good)} .*no known shape"):
        run_job(source, output, FakeExecutor(), fail_fast=True)
    rest = FakeExecutor()
    notices: list[str] = []
    run_job(source, output, rest, notices=notices)
    assert notices[0].startswith(f"resuming at row {len(good) // 10 * 10} of")
    assert read(output)[len(good)]["error"]["code"] == "invalid_conversation"


def test_limit_scores_only_first_rows(source: Path, output: Path) -> None:
    assert run_job(source, output, FakeExecutor(), limit=23).num_rows == 23
    assert [row["id"] for row in read(output)] == list(range(23))


def test_empty_input_gives_empty_output(source: Path, output: Path) -> None:
    source.write_text("")
    executor = FakeExecutor()
    assert run_job(source, output, executor).num_rows == 0
    assert output.read_bytes() == b""
    assert executor.calls == []


NAMES = {"reward", "chosen_reward", "rejected_reward", "margin", "rewards", "error"} | {
    "truncated",
    "warnings",
}


def comparable_rows(path: Path) -> list[Any]:
    """Return rows as lists of columns in order, without error messages, which name columns."""
    content = path.read_bytes()
    lines = (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()
    rows = [json.loads(line) for line in lines]
    return [[(k, v["code"] if k == "error" else v) for k, v in row.items()] for row in rows]


@pytest.mark.parametrize("names", [("out.jsonl", "b.jsonl"), ("out.jsonl.gz", "b.jsonl.gz")])
@pytest.mark.parametrize("limit", [None, 40])
def test_output_with_job_folder_can_be_scored_again(
    source: Path, tmp_path: Path, names: tuple[str, str], limit: int | None
) -> None:
    first, again = (tmp_path / name for name in names)
    run_job(source, first, FakeExecutor())
    notices: list[str] = []
    run_job(first, again, FakeExecutor(), notices=notices, limit=limit)
    assert comparable_rows(again) == comparable_rows(first)[:limit]
    assert "results of an earlier run are replaced" in notices[0]


def test_moved_output_keeps_results_without_replace_results(
    source: Path, output: Path, tmp_path: Path
) -> None:
    run_job(source, output, FakeExecutor())
    moved, again = tmp_path / "moved.jsonl", tmp_path / "again.jsonl"
    moved.write_bytes(output.read_bytes())
    notices: list[str] = []
    summary = run_job(moved, again, FakeExecutor(), notices=notices)
    assert notices[0] == "results of an earlier run are replaced: `error`"
    assert "`reward` in `skyreward_reward`" in notices[1]
    assert "--replace-results" in notices[1]
    assert set(summary.renamed) == NAMES - {"error"}
    for before, after in zip(read(output), read(again), strict=True):
        kept = before.keys() - {"error"}
        assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
        for name in NAMES & kept:
            assert after[f"skyreward_{name}"] == before[name]
    run_job(moved, again, FakeExecutor(), overwrite=True, replace_results=True)
    assert comparable_rows(again) == comparable_rows(output)


def test_results_edited_by_user_are_kept(source: Path, output: Path) -> None:
    run_job(source, output, FakeExecutor())
    rows = read(output)
    rows[3] |= {"margin": 2.0}
    write_lines(output, rows)
    again = output.with_name("again.jsonl")
    run_job(output, again, FakeExecutor())
    assert read(again)[3]["margin"] == 2.0
    assert any("skyreward_margin" in row for row in read(again))


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
@pytest.mark.parametrize("fail_at", [0, 4, 9])
def test_resumed_job_keeps_result_names(
    source: Path, tmp_path: Path, name: str, fail_at: int
) -> None:
    rows = [
        {"id": n, "prompt": f"{n}?", "chosen": "a", "rejected": "b", "error": f"gold {n}"}
        for n in range(95)
    ]
    rows[90]["margin"] = 2.5
    write_lines(source, rows)
    output, whole = tmp_path / name, tmp_path / f"whole-{name}"
    run_job(source, whole, FakeExecutor())
    with pytest.raises(RuntimeError):
        run_job(source, output, FakeExecutor(fail_at=fail_at))
    notices: list[str] = []
    summary = run_job(source, output, FakeExecutor(), notices=notices)
    assert output.read_bytes() == whole.read_bytes()
    assert "`error` in `skyreward_error`, `margin` in `skyreward_margin`" in notices[0]
    renamed = {"margin": "skyreward_margin", "error": "skyreward_error"}
    assert summary.renamed == renamed == run_job(source, output, FakeExecutor()).renamed
    out = pq.read_table(output).to_pylist() if name.endswith("parquet") else read(output)
    for before, after in zip(rows, out, strict=True):
        assert {key: after[key] for key in before} == before
        assert after["skyreward_margin"] == after["chosen_reward"] - after["rejected_reward"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps({"messages": TURNS}).encode("utf-16"), "is UTF-16"),
        (json.dumps({"messages": TURNS, "t": "né"}, ensure_ascii=False).encode("cp1252"), "cp125"),
        (b'{"margin": 1, "skyreward_margin": 2}', "no name is left for a result; rename"),
    ],
)
def test_bad_input_is_refused_before_scoring(
    source: Path, output: Path, content: bytes, says: str
) -> None:
    source.write_bytes(source.read_bytes() if says == "cp125" else b"")
    other = source.with_name("later.jsonl")
    other.write_bytes(content)
    folder = source.with_name("in")
    folder.mkdir()
    for path in (source, other):
        path.rename(folder / path.name)
    executor = FakeExecutor()
    with pytest.raises(JobInputError, match=says):
        run_job(folder, output, executor)
    assert executor.calls == []
    assert not output.exists()


@pytest.mark.parametrize("name", ["in.jsonl", "in.json"])
def test_too_long_row_is_row_of_output_with_error(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 3000)
    texts = [json.dumps({"id": n, "messages": TURNS}) for n in range(95)]
    texts[40] = json.dumps({"messages": TURNS, "more": "x" * 5000})
    array = f"[{', '.join(texts)}]"
    (tmp_path / name).write_text(array if name == "in.json" else "\n".join(texts))
    with pytest.raises(RuntimeError):
        run_job(tmp_path / name, output, FakeExecutor(fail_at=0))
    summary = run_job(tmp_path / name, output, FakeExecutor())
    assert (summary.num_rows, summary.num_failed) == (95, 1)
    rows = read(output)
    assert [row.get("id") for row in rows] == [*range(40), None, *range(41, 95)]
    assert rows[40]["line"] == texts[40][: json_rows.PREVIEW_BYTES]
    assert "the maximum is 3,000" in rows[40]["error"]["message"]


def test_non_finite_numbers_are_counted_in_summary(source: Path, output: Path) -> None:
    table = pa.table({"messages": [TURNS] * 3, "x": [float("nan"), float("inf"), 1.0]})
    pq.write_table(table, source.with_name("in.parquet"))
    summary = run_job(source.with_name("in.parquet"), output, FakeExecutor())
    assert summary.nulled == {"x": 2}
    assert ("NaN or infinite, null in the output: x", "2") in format_summary(summary)
    again = run_job(source.with_name("in.parquet"), output, FakeExecutor())
    assert again.nulled == {"x": 2}
    assert [row["x"] for row in read(output)] == [None, None, 1.0]


class FakeReport(Report):
    def __init__(self) -> None:
        self.rows: list[tuple[Any, int, str | None]] = []
        self.written: list[Summary] = []

    def add(self, row: RowResults) -> None:
        self.rows.append((row.kind, len(row.results), row.failure.code if row.failure else None))

    def write(self, summary: Summary) -> None:
        self.written.append(summary)


def test_report_receives_every_row(source: Path, output: Path) -> None:
    report = FakeReport()
    summary = run_job(source, output, FakeExecutor(), report=report)
    assert report.written == [summary]
    assert [code for _, _, code in report.rows] == [
        row.get("error", {}).get("code") for row in read(output)
    ]
    assert {kind for kind, _, _ in report.rows} == {"conversation", "pair", "group", None}


def test_finished_job_gives_report_same_rows(source: Path, output: Path) -> None:
    first, later, executor = FakeReport(), FakeReport(), FakeExecutor()
    run_job(source, output, FakeExecutor(), report=first)
    run_job(source, output, executor, report=later)
    assert (later.rows, later.written) == (first.rows, first.written)
    assert (executor.num_asked, executor.calls) == (0, [])


def test_job_stops_after_chunks_in_flight(source: Path, output: Path) -> None:
    from serve.errors import JobStoppedError

    shutdown = GracefulShutdown("")
    executor = FakeExecutor()

    def stop(number: int) -> None:
        if number == 2:
            shutdown.received_signal = 2

    executor.before = stop
    with pytest.raises(JobStoppedError):
        run_job(source, output, executor, shutdown=shutdown)
    kept = count_chunks(output)
    assert 3 <= kept <= 5
    rest = FakeExecutor()
    run_job(source, output, rest)
    assert len(rest.calls) == 10 - kept


def test_table_without_columns_gives_table(tmp_path: Path) -> None:
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({}), source)
    assert run_job(source, output, FakeExecutor()).num_rows == 0
    assert pq.read_table(output).num_rows == 0
