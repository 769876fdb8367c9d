"""`skyreward score` with judges and step models: rows, tables, refusals, resumed jobs, reports."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from html_pages import check_page
from job_runs import FakeExecutor, run_job, write_lines
from kinds import (
    build_judge,
    build_step_model,
    compute_log_odds,
    compute_step_rewards,
    read_tokens,
    serving_models,
)
from stub_service import StubService, stub_service

from rm_core import ModelConfig, ScoreError, load_encoder, sigmoid
from rm_core.inputs.judge_items import JudgePair
from rm_core.inputs.step_items import StepItem
from serve.cli.main import main
from serve.errors import BadRowError, JobInputError
from serve.jobs import command
from serve.jobs.record_reader import try_parse_record
from serve.jobs.report import Report
from serve.jobs.row_results import RowResults
from serve.jobs.spec import JobSpec

QUESTION = "What is the capital of France?"
ANSWERS = ["Paris.", "The capital of France is Paris, a city on the Seine.", "I am sorry."]
PROBLEM = "Jane has 12 apples and gives 4 to Mark. How many are left?"
STEPS = ["12 - 4 = 8", "So Jane has 8."]
SOLUTIONS = ["12 - 4 = 8\nSo Jane has 8.", "12 - 4 = 7", "It is\n8\napples."]
USER = {"role": "user", "content": QUESTION}
LONG = "far " * 5000
SECTION = "[The Start of Assistant B's Answer]"


def chat(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


JUDGE_ROWS: list[dict[str, Any]] = [
    {"id": 0, "prompt": QUESTION, "chosen": ANSWERS[0], "rejected": ANSWERS[2]},
    {"id": 1, "prompt": QUESTION, "responses": ANSWERS},
    {"id": 2, "prompt": QUESTION, "response": ANSWERS[0]},
    {"id": 3, "prompt": QUESTION, "chosen": LONG, "rejected": ANSWERS[0]},
    {"id": 4, "chosen": chat(QUESTION, ANSWERS[1]), "rejected": chat(QUESTION, ANSWERS[0])},
    {"id": 5, "prompt": QUESTION, "responses": [ANSWERS[0], 7, ANSWERS[2]]},
    {"id": 6, "prompt": QUESTION, "responses": [ANSWERS[0]]},
    {"id": 7, "prompt": QUESTION, "responses": [ANSWERS[0], LONG, ANSWERS[2]]},
    {"id": 8, "prompt": QUESTION, "chosen": ANSWERS[0]},
    {"id": 9, "chosen": chat("2+2?", "4"), "rejected": chat("2+3?", "4")},
    {"id": 10, "prompt": QUESTION, "chosen": f"{SECTION} 4", "rejected": "5"},
]
STEP_ROWS: list[dict[str, Any]] = [
    {"id": 0, "prompt": PROBLEM, "steps": STEPS},
    {"id": 1, "prompt": PROBLEM, "completions": STEPS, "labels": [True, False]},
    {"id": 2, "prompt": PROBLEM, "response": SOLUTIONS[2]},
    {"id": 3, "messages": chat(PROBLEM, SOLUTIONS[0])},
    {"id": 4, "prompt": PROBLEM, "chosen": SOLUTIONS[0], "rejected": SOLUTIONS[1]},
    {"id": 5, "prompt": PROBLEM, "responses": [*SOLUTIONS, LONG]},
    {"id": 6, "prompt": PROBLEM, "steps": []},
    {"id": 7, "prompt": PROBLEM, "steps": ["a", 4]},
    {"id": 8, "steps": ["a"]},
    {"id": 9, "prompt": PROBLEM, "steps": ["x"] * 2000},
    {"id": 10, "prompt": PROBLEM, "steps": STEPS, "response": SOLUTIONS[0]},
    {"id": 11, "prompt": PROBLEM, "steps": ["12 - 4 = 8\nSo Jane has 8."]},
]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def step_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_step_model(tmp_path_factory.mktemp("prm"))


@pytest.fixture(scope="module")
def service(judge: Path, step_model: Path) -> Iterator[StubService]:
    """The application with both models, over HTTP."""
    settings = {"name": str(judge), "kind": "judge"}
    with serving_models(judge=settings, prm=step_model) as app, stub_service(app) as stub:
        yield stub


@pytest.fixture(scope="module")
def margins(judge: Path) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Log-odds that the first answer is better and label mass in both orders, by transformers."""
    encoder = load_encoder(ModelConfig(str(judge), kind="judge"))
    vocabulary = read_tokens(judge)
    labels = (vocabulary["A"], vocabulary["B"])
    verdicts = {
        (first, second): compute_log_odds(
            judge, list(encoder.encode(JudgePair(QUESTION, first, second)).input_ids), labels
        )
        for first, second in itertools.permutations(ANSWERS, 2)
    }
    return {
        (first, second): [given, (-verdicts[second, first][0], verdicts[second, first][1])]
        for (first, second), given in verdicts.items()
    }


def score(source: Path, output: Path, *options: str, chunk_rows: int = 4) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "JobSpec", partial(JobSpec, chunk_rows=chunk_rows))
        arguments = ["score", str(source), "-o", str(output), *options]
        done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    return done.exit_code, " ".join(done.output.split())


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def near(values: Any) -> Any:
    return pytest.approx(values, abs=1e-4, rel=0)


def local(judge: Path) -> list[str]:
    return ["--model", str(judge), "--kind", "judge"]


def check_verdict(row: dict[str, Any], orders: list[tuple[float, float]]) -> None:
    assert [(one["log_odds"], one["label_mass"]) for one in row["orders"]] == [
        near(order) for order in orders
    ]
    log_odds = [order["log_odds"] for order in row["orders"]]
    assert row["margin"] == pytest.approx(sum(log_odds) / len(log_odds))
    assert row["probability"] == pytest.approx(sigmoid(row["margin"]))
    agree = len({value > 0 for value in log_odds}) == 1
    assert row["consistent"] == (agree if len(log_odds) == 2 else None)
    assert row["chosen_reward"] is row["rejected_reward"] is None
    assert "error" not in row


def check_judged_rows(rows: list[dict[str, Any]], margins: Any) -> None:
    for sent, row in zip(JUDGE_ROWS, rows, strict=True):
        assert {key: row[key] for key in sent} == sent
    means = {pair: (orders[0][0] + orders[1][0]) / 2 for pair, orders in margins.items()}
    check_verdict(rows[0], margins[ANSWERS[0], ANSWERS[2]])
    check_verdict(rows[4], margins[ANSWERS[1], ANSWERS[0]])
    assert rows[1]["rewards"] == near(
        [sum(means[one, other] for other in ANSWERS if other != one) / 2 for one in ANSWERS]
    )
    assert sum(rows[1]["rewards"]) == near(0.0)
    assert any(
        w.startswith("judge_section_in_text: the first answer") for w in rows[10]["warnings"]
    )
    # The other answers of a group are compared with each other.
    single = means[ANSWERS[0], ANSWERS[2]]
    for row, reason in ((rows[5], "`responses[1]`: the response"), (rows[7], "tokens")):
        rewards = row["rewards"]
        assert (rewards[1], [rewards[0], rewards[2]]) == (None, near([single, -single]))
        assert row["error"]["message"].startswith("`responses[0]` against `responses[1]`: ")
        assert reason in row["error"]["message"]
    for index, code, reason in (
        (2, "invalid_conversation", "a judge compares two answers to one prompt; give `chosen`"),
        (3, "conversation_too_long", "the limit is 1024"),
        (6, "invalid_conversation", "give 2 to 128 responses"),
        (8, "invalid_conversation", "the pair has no `rejected`"),
        (9, "invalid_conversation", "differ before the last turn"),
    ):
        assert rows[index]["error"]["code"] == code
        assert reason in rows[index]["error"]["message"]
        assert not {"margin", "rewards", "orders", "reward"} & rows[index].keys()


def test_judge_gives_margins_and_mean_margins(judge: Path, margins: Any, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", JUDGE_ROWS)
    code, text = score(source, tmp_path / "out.jsonl", *local(judge))
    assert code == 3, text
    check_judged_rows(read(tmp_path / "out.jsonl"), margins)
    assert "rows 11 scored 4 with an error 7" in text
    # A finished job scores nothing and writes a report.
    report = tmp_path / "report.html"
    _, text = score(source, tmp_path / "out.jsonl", *local(judge), "--report", str(report))
    assert "is complete already" in text
    page = report.read_text()
    check_page(page)
    assert "pairs with the same answer ahead in both orders" in page
    assert "Margins of pairs" in page
    assert "Rewards of pairs" not in page


def test_judge_of_a_service(service: StubService, margins: Any, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", JUDGE_ROWS)
    options = ["--url", service.url, "--model", "judge"]
    code, text = score(source, tmp_path / "out.jsonl", *options)
    assert code == 3, text
    check_judged_rows(read(tmp_path / "out.jsonl"), margins)
    assert re.search(r" error 7 .* tokens \d+,\d{3} ", text)
    code, text = score(source, tmp_path / "none.jsonl", *options, "--dry-run")
    assert code == 1
    assert "counts the tokens of conversations only" in text


def test_judge_in_the_given_order(judge: Path, margins: Any, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [JUDGE_ROWS[0], JUDGE_ROWS[1]])
    assert score(source, tmp_path / "both.jsonl", *local(judge))[0] == 0
    given_options = [*local(judge), "--orders", "given"]
    assert score(source, tmp_path / "given.jsonl", *given_options)[0] == 0
    _, group = read(tmp_path / "both.jsonl")
    given, same_group = read(tmp_path / "given.jsonl")
    check_verdict(given, margins[ANSWERS[0], ANSWERS[2]][:1])
    assert same_group["rewards"] == near(group["rewards"])
    code, text = score(source, tmp_path / "given.jsonl", *local(judge))
    assert code == 1
    assert '--orders was "given" and is not given' in text


def test_table_of_a_judge(judge: Path, tmp_path: Path) -> None:
    rows = [{**row, "orders": "mine"} for row in (JUDGE_ROWS[0], JUDGE_ROWS[1], JUDGE_ROWS[2])]
    source = write_lines(tmp_path / "in.jsonl", rows)
    assert score(source, tmp_path / "out.parquet", *local(judge))[0] == 3
    assert score(source, tmp_path / "out.jsonl", *local(judge))[0] == 3
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("margin").type == pa.float64()
    assert table.schema.field("rewards").type == pa.list_(pa.float64())
    assert "reward" not in table.schema.names
    for stored, row in zip(table.to_pylist(), read(tmp_path / "out.jsonl"), strict=True):
        assert {key: value for key, value in stored.items() if value is not None} == {
            key: value for key, value in row.items() if value is not None
        }
        assert stored["orders"] == "mine"
    assert len(table.column("skyreward_orders")[0].as_py()) == 2
    # The columns of a judge are no results for a classifier: the user's stay as they are.
    code, text = score(source, tmp_path / "demo.jsonl", "--model", "demo")
    assert (code, "kept" in text) == (0, False)
    assert [row["orders"] for row in read(tmp_path / "demo.jsonl")] == ["mine"] * 3


def test_results_of_a_judge_are_replaced_by_a_second_run(judge: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", JUDGE_ROWS[:2])
    assert score(source, tmp_path / "first.jsonl", *local(judge))[0] == 0
    code, text = score(tmp_path / "first.jsonl", tmp_path / "second.jsonl", *local(judge))
    assert (code, "results of an earlier run are replaced" in text) == (0, True)
    assert read(tmp_path / "second.jsonl") == read(tmp_path / "first.jsonl")


def check_step_rows(rows: list[dict[str, Any]], step_model: Path, combine: Any) -> None:
    def expect(text: str) -> list[float]:
        return compute_step_rewards(step_model, PROBLEM, text.split("\n"))

    for index, text in ((0, SOLUTIONS[0]), (1, SOLUTIONS[0]), (2, SOLUTIONS[2]), (3, SOLUTIONS[0])):
        assert rows[index]["step_rewards"] == near(expect(text))
        assert rows[index]["reward"] == combine(rows[index]["step_rewards"])
    assert rows[1]["labels"] == [True, False]
    assert rows[11]["step_rewards"] == near(expect(SOLUTIONS[0])[-1:])
    pair = rows[4]
    for side, text in (("chosen", SOLUTIONS[0]), ("rejected", SOLUTIONS[1])):
        assert pair[f"{side}_step_rewards"] == near(expect(text))
        assert pair[f"{side}_reward"] == combine(pair[f"{side}_step_rewards"])
    assert pair["margin"] == pair["chosen_reward"] - pair["rejected_reward"]
    group = rows[5]
    assert group["responses_step_rewards"][:3] == [near(expect(text)) for text in SOLUTIONS]
    assert group["rewards"][:3] == [combine(one) for one in group["responses_step_rewards"][:3]]
    assert group["rewards"][3] is group["responses_step_rewards"][3] is None
    assert group["error"]["message"].startswith("`responses[3]`: ")
    for index, reason in (
        (6, "`steps` is empty"),
        (7, "step 1 is a number"),
        (8, "needs a `prompt`"),
        (9, "tokens"),
        (10, "has `response`, `steps`"),
    ):
        assert reason in rows[index]["error"]["message"]
        assert not {"reward", "step_rewards"} & rows[index].keys()


@pytest.mark.parametrize(
    ("aggregation", "combine"), [("last", lambda r: r[-1]), ("min", min), ("product", math.prod)]
)
def test_step_model_gives_step_rewards(
    step_model: Path, tmp_path: Path, aggregation: str, combine: Any
) -> None:
    source = write_lines(tmp_path / "in.jsonl", STEP_ROWS)
    options = ["--model", str(step_model), "--aggregation", aggregation]
    code, text = score(source, tmp_path / "out.jsonl", *options)
    assert code == 3, text
    check_step_rows(read(tmp_path / "out.jsonl"), step_model, combine)


def test_step_model_of_a_service(service: StubService, step_model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", STEP_ROWS)
    options = ["--url", service.url, "--model", "prm", "--aggregation", "min"]
    code, text = score(source, tmp_path / "out.jsonl", *options, chunk_rows=20)
    assert code == 3, text
    check_step_rows(read(tmp_path / "out.jsonl"), step_model, min)


def test_table_of_a_step_model(step_model: Path, tmp_path: Path) -> None:
    rows = [*STEP_ROWS[:7], STEP_ROWS[9]]
    source = write_lines(tmp_path / "in.jsonl", rows)
    options = ["--model", str(step_model), "--aggregation", "product"]
    assert score(source, tmp_path / "out.jsonl", *options)[0] == 3
    assert score(source, tmp_path / "out.parquet", *options)[0] == 3
    table = pq.read_table(tmp_path / "out.parquet")
    numbers = pa.list_(pa.float64())
    for name, expected in (
        ("reward", pa.float64()),  # a product of many steps is below float32
        ("step_rewards", numbers),
        ("chosen_step_rewards", numbers),
        ("rejected_step_rewards", numbers),
        ("responses_step_rewards", pa.list_(numbers)),
    ):
        assert table.schema.field(name).type == expected
    for stored, row in zip(table.to_pylist(), read(tmp_path / "out.jsonl"), strict=True):
        assert {key: value for key, value in stored.items() if value is not None} == row
    # From a table, whose column names decide the columns of the output.
    stepwise = pa.table({"prompt": [PROBLEM], "completions": [STEPS], "labels": [[True, True]]})
    pq.write_table(stepwise, tmp_path / "stepwise.parquet")
    assert score(tmp_path / "stepwise.parquet", tmp_path / "scored.parquet", *options)[0] == 0
    (row,) = pq.read_table(tmp_path / "scored.parquet").to_pylist()
    assert row["step_rewards"] == near(
        compute_step_rewards(step_model, PROBLEM, SOLUTIONS[0].split("\n"))
    )
    assert "rewards" not in row


def test_dry_run_counts_what_is_scored(judge: Path, step_model: Path, tmp_path: Path) -> None:
    encoder = load_encoder(ModelConfig(str(judge), kind="judge"))
    pair = JudgePair(QUESTION, ANSWERS[0], ANSWERS[2])
    num_tokens = sum(encoder.encode(one).num_tokens for one in (pair, pair.swap()))
    source = write_lines(tmp_path / "pairs.jsonl", JUDGE_ROWS[:1])
    code, text = score(source, tmp_path / "out.jsonl", *local(judge), "--dry-run")
    assert (code, f"tokens {num_tokens}" in text.replace(",", "")) == (0, True), text
    item = load_encoder(ModelConfig(str(step_model))).encode(StepItem(PROBLEM, tuple(STEPS)))
    source = write_lines(tmp_path / "steps.jsonl", STEP_ROWS[:1])
    options = ["--model", str(step_model), "--dry-run"]
    code, text = score(source, tmp_path / "out.jsonl", *options)
    assert (code, f"tokens {item.num_tokens} " in text) == (0, True), text
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("model", "option", "value", "reason"),
    [
        ("judge", "--aggregation", "min", "--aggregation is for step models"),
        ("step_model", "--orders", "given", "--orders is for judges"),
        ("demo", "--orders", "both", "--orders is for judges"),
        ("step_model", "--truncation", "left", "--truncation left is for classifiers"),
        ("judge", "--truncation", "right", "--truncation right is for classifiers"),
    ],
)
def test_option_of_another_kind_is_refused(
    judge: Path, step_model: Path, tmp_path: Path, model: str, option: str, value: str, reason: str
) -> None:
    source = write_lines(tmp_path / "in.jsonl", JUDGE_ROWS[:1])
    chosen = {"judge": local(judge), "step_model": ["--model", str(step_model)], "demo": []}
    options = [*chosen[model], option, value]
    for more in ([], ["--dry-run"]):
        code, text = score(source, tmp_path / "out.jsonl", *options, *more)
        assert (code, reason in text) == (1, True), text


def test_steps_are_read_for_step_models_only() -> None:
    stepwise = {"prompt": PROBLEM, "completions": STEPS, "labels": [True, False]}
    for record in (stepwise, {"prompt": PROBLEM, "steps": STEPS}):
        for kind in ("classifier", "judge"):
            error = try_parse_record(record, kind=kind).error
            assert error
            assert "step model" in error.message
        parsed = try_parse_record({**record, "system": "Be brief."}, kind="step")
        prompt = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": PROBLEM},
        ]
        assert parsed.conversations == (StepItem(prompt, tuple(STEPS)),)
        assert (parsed.kind, parsed.warnings) == ("conversation", ())
    # Next to a pair or a group, steps are a column like others; `labels` alone say nothing.
    pair = {"prompt": PROBLEM, "chosen": "8", "rejected": "7", "steps": STEPS}
    assert try_parse_record(pair, kind="step").kind == "pair"
    assert try_parse_record({"prompt": PROBLEM, "completions": STEPS}, kind="step").error
    for more, reason in (
        ({"tools": [{"type": "function", "function": {}}]}, "does not read"),
        ({"messages": chat(PROBLEM, "8")}, "has `messages`, `steps`"),
        ({"steps": "12 - 4 = 8"}, "must be a list of texts"),
    ):
        error = try_parse_record({"prompt": PROBLEM, "steps": STEPS, **more}, kind="step").error
        assert error
        assert reason in error.message


def test_group_too_large_for_a_judge_is_refused() -> None:
    record = {"prompt": QUESTION, "responses": [str(n) for n in range(129)]}
    error = try_parse_record(record, kind="judge").error
    assert error
    assert "16,512" in error.message
    parsed = try_parse_record({**record, "responses": record["responses"][:128]}, kind="judge")
    assert len(parsed.conversations) == 128 * 127


class KindExecutor(FakeExecutor):
    """A fake model of a kind."""

    def __init__(self, kind: str, fail_at: int | None = None) -> None:
        super().__init__(fail_at=fail_at)
        self.model["kind"] = kind


ROWS = [
    {"id": n, **row}
    for n in range(6)
    for row in (
        {"prompt": f"{n}?", "chosen": "a", "rejected": "b"},
        {"prompt": f"{n}?", "responses": ["a", "b", "HUGE" if n == 4 else "c"]},
        {"prompt": f"{n}?", "steps": ["a", "b"]},
        {"prompt": f"{n}?", "chosen": "HUGE" if n == 3 else "a", "rejected": "c"},
    )
]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("kind", ["judge", "step"])
def test_stopped_job_resumes_with_equal_output_and_report(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    whole, resumed = (tmp_path / f"{name}.{suffix}" for name in ("whole", "resumed"))
    pages = [Report(tmp_path / f"{name}.html", "scored") for name in ("whole", "resumed")]
    summary = run_job(source, whole, KindExecutor(kind), chunk_rows=3, report=pages[0])
    for fail_at in (1, 0, 2, 1):
        with contextlib.suppress(RuntimeError):
            run_job(source, resumed, KindExecutor(kind, fail_at), chunk_rows=3)
            pytest.fail("the job did not stop")
        assert not resumed.exists()
    again = run_job(source, resumed, KindExecutor(kind), chunk_rows=3, report=pages[1])
    assert resumed.read_bytes() == whole.read_bytes()
    assert again.num_failed == summary.num_failed == (8 if kind == "judge" else 2)
    shown = [page.render(summary) for page in pages]
    assert shown[0] == shown[1]
    text = " ".join(re.sub(r"<[^>]+>", " ", shown[0]).split())
    assert "rows: pairs 12" in text
    assert "rows: groups 6" in text


def test_fail_fast_names_the_first_row_of_a_judge(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [*ROWS[:2], {"messages": chat("0?", "a")}])
    with pytest.raises(BadRowError, match=r"row 2 .*a judge compares two answers"):
        run_job(source, tmp_path / "out.jsonl", KindExecutor("judge"), fail_fast=True)


def test_aggregation_needs_a_step_model(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    with pytest.raises(JobInputError, match="this model is a classifier"):
        run_job(source, tmp_path / "out.jsonl", FakeExecutor(), aggregation="min")


def test_chunks_of_a_judge_are_bounded_by_what_it_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"{n}?", "responses": [f"{n} {m} " + "x" * 90 for m in range(10)]}
        for n in range(8)
    ]
    source = write_lines(tmp_path / "in.jsonl", rows)
    monkeypatch.setattr("serve.jobs.runner.MAX_CHUNK_BYTES", 150_000)
    for kind, num_calls in (("classifier", 1), ("judge", 4)):
        executor = KindExecutor(kind)
        run_job(source, tmp_path / f"{kind}.jsonl", executor)
        assert len(executor.calls) == num_calls


def test_failed_comparison_of_a_group_is_named() -> None:
    failed = ScoreError("conversation_too_long", "too long")
    columns = RowResults("judged_group", [failed, failed]).build_columns()
    assert columns == {
        "rewards": [None, None],
        "error": {
            "code": "conversation_too_long",
            "message": "`responses[0]` against `responses[1]`: too long",
        },
    }
