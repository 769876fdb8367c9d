"""Evaluations of step models and judges from files of their numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_files
import pytest
from click.testing import CliRunner
from published_rows import REWARDBENCH, rewardbench_row

from rm_core.catalog.entries import find_entry
from serve.cli.main import main
from serve.errors import ScoreFileError

Evaluate = Callable[..., tuple[int, list[str]]]
CRITIC = "Skywork-Critic-Llama-3.1-"


def read_summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


@pytest.mark.parametrize(
    ("model", "overall", "sections"),
    [
        ("8B", 88.96, [93.58, 81.36, 91.08, 89.80]),
        ("70B", 93.31, [96.65, 87.94, 93.11, 95.54]),
    ],
)
@pytest.mark.usefixtures("reports")
def test_verdicts_of_judges_give_published_rewardbench(
    model: str, overall: float, sections: list[float], tmp_path: Path
) -> None:
    """The verdicts, 1 or -1 in one order, are rebuilt from the published counts of subsets."""
    entry = find_entry(CRITIC + model)
    assert entry is not None
    counts = {
        row.metric: round(row.value * REWARDBENCH[row.metric])
        for row in entry.published
        if row.source == "reward-bench-results" and row.metric in REWARDBENCH
    }
    rows = [rewardbench_row(n, name) for name, num in REWARDBENCH.items() for n in range(num)]
    scores = [
        {
            "id": row["id"],
            "subset": row["subset"],
            "log_odds": [[1 if row["id"] < counts[row["subset"]] else -1]],
        }
        for row in rows
    ]
    (tmp_path / "rows.jsonl").write_text(benchmark_files.lines(rows))
    (tmp_path / "scores.jsonl").write_text(benchmark_files.lines(scores))
    arguments = ["eval", "rewardbench", "--data", str(tmp_path / "rows.jsonl"), "--name"]
    arguments += [CRITIC + model, "--scores", str(tmp_path / "scores.jsonl"), "-o"]
    result = CliRunner().invoke(main, [*arguments, str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    summary = read_summary(tmp_path / "out")
    assert round(100 * summary["overall"], 2) == overall
    assert [round(100 * value, 2) for value in summary["sections"].values()] == sections
    assert summary["partial"] is False
    assert summary["used"]["judge_orders"] == "one"
    assert "comparison with published results" in result.stdout
    lines = (tmp_path / "out" / "scores.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == scores[0] | {"id": "0"}


def test_numbers_of_each_kind_give_equal_results_again(evaluate: Evaluate, tmp_path: Path) -> None:
    rng = random.Random(4)
    for name, field in (
        ("processbench", "rewards"),
        ("prmbench", "rewards"),
        ("best-of-n", "step_rewards"),
        ("judgebench", "log_odds"),
        ("rmb", "log_odds"),
    ):
        rows = benchmark_files.EVERY[name]
        data = benchmark_files.write(tmp_path / name, rows)
        scores = []
        evaluate(name, f"items/{name}", data=data)
        for line in (tmp_path / "items" / name / "items.jsonl").read_text().splitlines():
            item = json.loads(line)
            pairs = {(min(pair), max(pair)) for pair in item["preferences"]}
            numbers: dict[str, Any] = {
                "rewards": [rng.random() for _ in item["responses"]],
                "step_rewards": [[rng.random(), rng.random()] for _ in item["responses"]],
                "log_odds": [[rng.gauss(0, 1), rng.gauss(0, 1)] for _ in pairs],
            }
            scores.append({"id": item["id"], "subset": item["subset"], field: numbers[field]})
        path = tmp_path / f"{name}.jsonl"
        path.write_text(benchmark_files.lines(scores))
        assert evaluate(name, f"out/{name}", data=data, scores=path)[0] == 0
        written = tmp_path / "out" / name / "scores.jsonl"
        for line, given in zip(written.read_text().splitlines(), scores, strict=True):
            assert json.loads(line)[field] == given[field]
        assert evaluate(name, f"again/{name}", data=data, scores=written)[0] == 0
        assert read_summary(tmp_path / "out" / name) == read_summary(tmp_path / "again" / name) | {
            "model": name
        }
    for name in ("processbench", "prmbench"):
        assert "ties" not in read_summary(tmp_path / "out" / name)["used"]


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        (
            "rewardbench2",
            {"log_odds": [[1]]},
            "rewardbench2 is not run with judges; give `rewards`",
        ),
        ("judgebench", {"log_odds": [[1], [2]]}, "has 1 pairs of responses.*is 2 lists"),
        ("judgebench", {"log_odds": [[1, 2, 3]]}, "must be a list of one or two numbers"),
        ("judgebench", {"log_odds": [1]}, "log-odds of pair 0 of .* are 1; they must be a list"),
        ("judgebench", {"log_odds": [[None, 1]]}, "log-odds 0 of pair 0 of .* is null"),
        ("judgebench", {"log_odds": [[1]], "rewards": [1, 0]}, "has `rewards` and `log_odds`"),
        ("best-of-n", {"step_rewards": [[1]] * 3}, "4 responses.*list of 4 lists, but is 3 lists"),
        ("best-of-n", {"step_rewards": [[1], [], [1], [1]]}, "step rewards of response 1"),
        (
            "processbench",
            {"step_rewards": [[1, 1, 1]]},
            "give the rewards of its steps as `rewards`",
        ),
        ("processbench", {"rewards": [1, 1]}, "has 3 steps.*list of 3 numbers, but is 2 rewards"),
    ],
)
def test_wrong_numbers_are_refused(
    name: str, numbers: dict[str, Any], message: str, evaluate: Evaluate, tmp_path: Path
) -> None:
    data = benchmark_files.write(tmp_path / "rows", benchmark_files.EVERY[name])
    evaluate(name, "items", data=data)
    item = json.loads((tmp_path / "items" / "items.jsonl").read_text().splitlines()[0])
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps({"id": item["id"], "subset": item["subset"], **numbers}) + "\n")
    with pytest.raises(ScoreFileError, match=message):
        evaluate(name, data=data, scores=path)


def test_numbers_of_two_models_are_refused(evaluate: Evaluate, tmp_path: Path) -> None:
    rows = benchmark_files.judgebench(2)
    data = benchmark_files.write(tmp_path / "rows", {"a.jsonl": rows})
    path = tmp_path / "scores.jsonl"
    lines = [{"id": rows[0]["pair_id"], "rewards": [1, 0]}]
    lines += [{"id": rows[1]["pair_id"], "log_odds": [[1]]}]
    path.write_text(benchmark_files.lines(lines))
    with pytest.raises(ScoreFileError, match="line 1 has rewards, and line 2 has log_odds"):
        evaluate("judgebench", data=data, scores=path)


def test_cut_solutions_of_prmbench_may_lack_rewards(evaluate: Evaluate, tmp_path: Path) -> None:
    data = benchmark_files.write(tmp_path / "rows", benchmark_files.EVERY["prmbench"])
    path = tmp_path / "scores.jsonl"
    path.write_text(
        benchmark_files.lines([{"id": "prm_0", "subset": "circular", "rewards": [0.9, 0.8]}])
    )
    options = {"preparation": "prmbench"}
    assert evaluate("prmbench", data=data, scores=path, options=options)[0] == 0
    with pytest.raises(ScoreFileError, match="has 3 steps"):
        evaluate("prmbench", "other", data=data, scores=path)
