"""Jobs that score the steps of solutions, or pairs of responses, instead of chats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from job_runs import FakeExecutor, reward_of, run_job, write_lines

from rm_core import Reward, ScoreError
from rm_core.inputs.judge_items import JudgePair
from rm_core.inputs.step_items import StepItem
from serve.errors import JobRefusedError
from serve.jobs.inputs.items import compute_digest, list_pairs, list_solutions
from serve.jobs.row_results import RowResults

PROMPT = [{"role": "user", "content": "2+2?"}]
ROWS = [
    {"id": n, "prompt": PROMPT, "responses": [f"n{n}", "4", "5"], "preferences": [[2, 0], [0, 1]]}
    for n in range(7)
]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_are_listed_once_in_both_orders() -> None:
    record = {**ROWS[3], "preferences": [[2, 0], [0, 1], [0, 2]]}
    assert list_pairs(record) == [
        JudgePair(PROMPT, "n3", "4"),
        JudgePair(PROMPT, "4", "n3"),
        JudgePair(PROMPT, "n3", "5"),
        JudgePair(PROMPT, "5", "n3"),
    ]
    assert list_solutions(record) == [StepItem(PROMPT, ("n3", "4", "5"))]


def test_digests_of_other_inputs_differ() -> None:
    inputs = [
        StepItem(PROMPT, ("a", "b")),
        StepItem(PROMPT, ("a", "b", "")),
        StepItem(PROMPT, response="a"),
        JudgePair(PROMPT, "a", "b"),
        JudgePair(PROMPT, "b", "a"),
        [*PROMPT, {"role": "assistant", "content": "a"}],
    ]
    assert len({compute_digest(one) for one in inputs}) == len(inputs)
    assert compute_digest(StepItem(PROMPT, ("a",))) == compute_digest(StepItem(PROMPT, ("a",)))


def test_stopped_job_of_steps_resumes_with_equal_output(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    run_job(source, tmp_path / "whole.jsonl", FakeExecutor(), inputs="steps", chunk_rows=2)
    with pytest.raises(RuntimeError):
        run_job(
            source, tmp_path / "out.jsonl", FakeExecutor(fail_at=2), inputs="steps", chunk_rows=2
        )
    run_job(source, tmp_path / "out.jsonl", FakeExecutor(), inputs="steps", chunk_rows=2)
    lines = read_lines(tmp_path / "out.jsonl")
    assert lines == read_lines(tmp_path / "whole.jsonl")
    for row, line in zip(ROWS, lines, strict=True):
        expected = [reward_of(f"{PROMPT}{step}").reward for step in row["responses"]]  # type: ignore[attr-defined]
        assert line["step_rewards"] == expected
        assert {key: line[key] for key in row} == row


def test_verdicts_are_log_odds_of_the_first_response(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    executor = FakeExecutor()
    run_job(source, tmp_path / "out.jsonl", executor, inputs="pairs")
    rewards = {}
    for call in executor.calls:
        for pair in call:
            assert isinstance(pair, JudgePair)
            text = json.dumps([pair.prompt, pair.first, pair.second])
            rewards[pair.first, pair.second] = reward_of(text).reward
    # The pair 4, 5 is not compared, and repeated pairs are scored once.
    assert len(rewards) == sum(map(len, executor.calls))
    assert ("4", "5") not in rewards
    for line in read_lines(tmp_path / "out.jsonl"):
        first, second, third = line["responses"]
        assert line["log_odds"] == [
            [rewards[first, second], -rewards[second, first]],
            [rewards[first, third], -rewards[third, first]],
        ]


def test_inputs_of_a_job_cannot_change(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    output, begun = tmp_path / "out.jsonl", FakeExecutor(fail_at=1)
    with pytest.raises(RuntimeError):
        run_job(source, output, begun, inputs="steps", chunk_rows=2)
    with pytest.raises(JobRefusedError, match="inputs"):
        run_job(source, output, FakeExecutor(), inputs="pairs", chunk_rows=2)


def test_job_without_results_begins_again_with_other_options(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    with pytest.raises(RuntimeError):
        run_job(source, tmp_path / "out.jsonl", FakeExecutor(fail_at=0), limit=3)
    run_job(source, tmp_path / "out.jsonl", FakeExecutor(), limit=2)
    assert len(read_lines(tmp_path / "out.jsonl")) == 2


def test_step_rewards_of_answers_are_written() -> None:
    steps = (0.5, 0.25)
    scored = Reward(0.25, 9, step_rewards=steps)
    assert RowResults("conversation", [scored]).build_columns() == {
        "reward": 0.25,
        "step_rewards": [0.5, 0.25],
    }
    columns = RowResults("group", [scored, ScoreError("x", "y")]).build_columns()
    assert columns["rewards"] == [0.25, None]
    assert columns["responses_step_rewards"] == [[0.5, 0.25], None]
    failed = RowResults("steps", [ScoreError("x", "y")]).build_columns()
    assert failed == {"error": {"code": "x", "message": "y"}}
