"""Warnings about how rows were read: in the output, in the summary, the same after a restart."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from job_runs import FakeExecutor, comparable, run_job, write_lines

from rm_core import ChatFormatName, Reward, RewardScorer
from serve.cli.main import main
from serve.cli.options import pop_columns
from serve.jobs.columns import Columns
from serve.jobs.dry_run import estimate
from serve.jobs.executors.local import LocalExecutor
from serve.jobs.inputs.items import compute_digest
from serve.jobs.inputs.source import open_source
from serve.jobs.output import Output
from serve.jobs.progress import Progress
from serve.jobs.row_results import RowResults
from serve.jobs.spec import JobSpec
from serve.jobs.summary import format_examples, format_summary
from serve.shutdown import GracefulShutdown

HH = "\n\nHuman: 2+2?\n\nAssistant:"


def rows(num_rows: int) -> list[dict[str, Any]]:
    """Return rows with and without warnings, with errors and with repeated conversations."""
    result: list[dict[str, Any]] = []
    for index in range(num_rows):
        turns = [
            {"role": "user", "content": f"question {index % 7}"},
            {"role": "assistant", "content": f"answer {index % 5}"},
        ]
        kinds: list[dict[str, Any]] = [
            {"messages": turns, "context": "read me"},
            {"messages": turns},
            {"chosen": f"{HH} {index}", "rejected": f"{HH} 5"},
            {"messages": turns, "images": ["a.png"]},
            {"messages": turns, "tools": [{"name": f"tool {index % 2}"}]},
        ]
        result.append({"id": index, **kinds[index % len(kinds)]})
    return result


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
@pytest.mark.parametrize("fail_at", [1, 3])
def test_warnings_are_in_the_output_and_survive_a_restart(
    tmp_path: Path, name: str, fail_at: int
) -> None:
    source = write_lines(tmp_path / "in.jsonl", rows(53))
    uninterrupted_output, output = tmp_path / f"whole-{name}", tmp_path / name
    uninterrupted = run_job(source, uninterrupted_output, FakeExecutor())
    with pytest.raises(RuntimeError):
        run_job(source, output, FakeExecutor(fail_at=fail_at))
    summary = run_job(source, output, FakeExecutor())
    assert output.read_bytes() == uninterrupted_output.read_bytes()
    assert comparable(summary) == comparable(uninterrupted)
    if name.endswith(".parquet"):
        written = pq.read_table(output).to_pylist()
    else:
        written = [json.loads(line) for line in output.read_text().splitlines()]
    for row in written:
        codes = [warning.partition(":")[0] for warning in row.get("warnings") or []]
        expected = {0: ["column_not_read"], 2: ["transcript_read"]}.get(row["id"] % 5, [])
        # Warnings of the executor follow the warnings of the record.
        assert codes[: len(expected)] == expected
        assert set(codes[len(expected) :]) <= {"system_prompt"}
    assert summary.warnings["column_not_read"] == 11
    assert summary.warnings["transcript_read"] == 11
    assert summary.errors["invalid_conversation"] == 10
    assert dict(format_summary(summary))["  column_not_read"] == "11"
    assert any(
        line.startswith("column_not_read, first seen in row 0: `context`")
        for line in format_examples(summary)
    )


def test_resume_with_other_column_options_is_refused(tmp_path: Path) -> None:
    from serve.errors import JobRefusedError

    source = write_lines(tmp_path / "in.jsonl", rows(30))
    with pytest.raises(RuntimeError):
        run_job(source, tmp_path / "out.jsonl", FakeExecutor(fail_at=1))
    for columns, says in (
        (Columns(transcripts="keep"), '--transcripts was "auto" and is "keep"'),
        (Columns(ignored=("context",)), "--ignore-column was"),
        (Columns(tools=""), '--tools-column was not given and is ""'),
        (Columns(policy_template="chatml"), "--policy-template was not given"),
    ):
        with pytest.raises(JobRefusedError, match=says):
            run_job(source, tmp_path / "out.jsonl", FakeExecutor(), columns=columns)


def test_resumed_job_recognizes_conversations_with_tools(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", rows(53))
    first, output = FakeExecutor(), tmp_path / "out.jsonl"
    run_job(source, tmp_path / "whole.jsonl", first)
    with pytest.raises(RuntimeError):
        run_job(source, output, FakeExecutor(fail_at=3))
    second = FakeExecutor()
    run_job(source, output, second)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert second.calls == first.calls[3:]


def test_dry_run_counts_warnings(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", rows(53))
    executor = FakeExecutor()
    with Progress(lambda line: None, on_terminal=False) as progress:
        spec = JobSpec(
            open_source(str(source)), Output.parse(tmp_path / "out.jsonl"), chunk_rows=10
        )
        dry_run = estimate(spec, executor, progress, GracefulShutdown(""))
    executor.close()
    assert dry_run.summary.warnings == {"column_not_read": 11, "transcript_read": 11}
    assert dict(dry_run.format_lines())["  transcript_read"] == "11"


def test_digests_differ_where_templates_render_differently() -> None:
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    calls = [
        [{"function": {"name": "sum", "arguments": arguments}}]
        for arguments in ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    ]
    different = [
        turns,
        {"messages": turns, "tools": [{"name": "a"}]},
        {"messages": turns, "tools": [{"name": "b"}]},
        {"messages": turns, "tools": [{"name": "a", "description": "b"}]},
        {"messages": turns, "tools": [{"description": "b", "name": "a"}]},
        *([turns[0], turns[1] | {"tool_calls": call}] for call in calls),
    ]
    assert len({compute_digest(conversation) for conversation in different}) == len(different)
    assert compute_digest(json.loads(json.dumps(turns))) == compute_digest(turns)


def test_row_has_each_warning_once() -> None:
    results = [Reward(1.0, 5, warnings=("b: 2", "c: 3")), Reward(2.0, 5, warnings=("b: 2",))]
    row = RowResults("pair", [*results], warnings=("a: 1", "b: 2"))
    assert row.all_warnings == ["a: 1", "b: 2", "c: 3"]


def test_column_options_match_columns_fields() -> None:
    """All options that decide how rows are read exist on the command line and are pinned."""
    options: dict[str, Any] = {
        parameter.name: None
        for parameter in main.commands["score"].params  # type: ignore[attr-defined]
    }
    assert set(pop_columns(options)) == {field.name for field in dataclasses.fields(Columns)}
    assert set(Columns().as_options()) <= {
        parameter.name
        for parameter in main.commands["score"].params  # type: ignore[attr-defined]
    }
    for command in ("score", "render"):
        (choice,) = (
            parameter.type.choices  # type: ignore[attr-defined]
            for parameter in main.commands[command].params  # type: ignore[attr-defined]
            if parameter.name == "policy_template"
        )
        assert tuple(choice) == get_args(ChatFormatName)


def test_render_reads_rows_as_score_does(checkpoint_of: Any, tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "in.jsonl",
        [{"q": "2+2?", "good": "4", "bad": "5", "context": "Numbers."}],
    )
    arguments = ["render", "--model", str(checkpoint_of("qwen3")), str(source)]
    named = ["--prompt-column", "q", "--chosen-column", "good", "--rejected-column", "bad"]
    done = CliRunner().invoke(main, [*arguments, *named])
    assert done.exit_code == 0, done.output
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["4" in shown[0]["text"], "5" in shown[1]["text"]] == [True, True]
    assert [w.partition(":")[0] for w in shown[0]["warnings"]] == ["column_not_read"]
    without_context = CliRunner().invoke(main, [*arguments, *named, "--ignore-column", "context"])
    assert "warnings" not in json.loads(without_context.stdout.splitlines()[0])


def test_local_executor_passes_tools_to_template(copy_of: Any, tmp_path: Path) -> None:
    from rm_core import ModelConfig

    folder = copy_of("qwen3")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{{ tools | tojson if tools }}" + template)
    config = ModelConfig(str(folder), device="cpu")
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    tools = [{"name": "sum", "description": "Adds."}]
    source = write_lines(
        tmp_path / "in.jsonl",
        [
            {"messages": turns},
            {"messages": turns, "tools": tools},
            {"messages": turns, "tools": []},
        ],
    )
    run_job(source, tmp_path / "out.jsonl", LocalExecutor(config))  # type: ignore[arg-type]
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    with_tools = {"messages": turns, "tools": tools}
    expected = RewardScorer.load(config).score([turns, with_tools, turns])
    assert [row["reward"] for row in written] == pytest.approx(
        [r.reward for r in expected if isinstance(r, Reward)], abs=1e-4
    )
    assert written[0]["reward"] == written[2]["reward"] != written[1]["reward"]
