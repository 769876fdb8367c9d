"""Options and output of the commands `eval`, `compare-runs` and `leaderboard`."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import benchmark_files
import pytest
from click.testing import CliRunner, Result
from conftest import BENCHMARK_DATA

from rm_core.benchmarks.registry import BENCHMARKS
from serve.cli.eval import BENCHMARK_NAMES
from serve.cli.main import main
from serve.evaluation.result import Evaluation

JUDGEBENCH = BENCHMARK_DATA / "judgebench"
REWARDMATH = BENCHMARK_DATA / "rewardmath"
GEMMA, LLAMA = "Skywork-Reward-Gemma-2-27B", "Skywork-Reward-Llama-3.1-8B"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def write_published_scores(path: Path, model: str) -> Path:
    """Write the rewards that the benchmark's authors published, as a `scores.jsonl`."""
    with (JUDGEBENCH / "skywork_v01_scores_gpt4o_pairs.csv").open(newline="") as file:
        rows = [
            {
                "id": row["pair_id"],
                "subset": row["source"],
                "rewards": [float(row[f"Skywork_{model}:{side}"]) for side in "AB"],
            }
            for row in csv.DictReader(file)
        ]
    path.write_text(benchmark_files.lines(rows))
    return path


def test_benchmark_names_match_registry() -> None:
    assert tuple(BENCHMARKS) == BENCHMARK_NAMES


@pytest.mark.skipif(not JUDGEBENCH.is_dir(), reason="the published files of JudgeBench are missing")
@pytest.mark.parametrize(
    ("model", "sections", "flat", "mean"),
    [
        (GEMMA, [59.74, 66.33, 83.93, 50.00], 64.29, 65.00),
        (LLAMA, [59.09, 64.29, 76.79, 50.00], 62.29, 62.54),
    ],
)
def test_judgebench_reproduces_published_results(
    model: str, sections: list[float], flat: float, mean: float, tmp_path: Path
) -> None:
    """Includes the report: this is the only test here that renders a report of real texts."""
    scores = write_published_scores(tmp_path / "scores.jsonl", model)
    data = next(JUDGEBENCH.glob("dataset=judgebench*.jsonl"))
    out = tmp_path / "out"
    result = invoke(
        "eval", "judgebench", "--data", data, "--scores", scores, "--name", model, "-o", out
    )
    assert result.exit_code == 0, result.output
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["sections"]) == ["knowledge", "reasoning", "math", "coding"]
    assert [round(100 * value, 2) for value in summary["sections"].values()] == sections
    assert round(100 * summary["overall"], 2) == flat
    assert round(100 * summary["mean_of_sections"], 2) == mean
    assert (summary["model"], summary["num_items"], summary["partial"]) == (model, 350, False)
    assert f"{flat:.2f}" in result.stdout
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 4
    assert model in page
    rerun = invoke(
        "eval", "judgebench", "--data", data, "--scores", out / "scores.jsonl", "-o", out
    )
    assert rerun.exit_code == 0
    assert json.loads((out / "summary.json").read_text()) == summary


@pytest.mark.skipif(not JUDGEBENCH.is_dir(), reason="the published files of JudgeBench are missing")
def test_compare_runs_of_published_rewards(
    reports: dict[Path, Sequence[Evaluation]], tmp_path: Path
) -> None:
    data = next(JUDGEBENCH.glob("dataset=judgebench*.jsonl"))
    for model in (GEMMA, LLAMA):
        scores = write_published_scores(tmp_path / f"{model}.jsonl", model)
        result = invoke(
            "eval", "judgebench", "--data", data, "--scores", scores, "-o", tmp_path / model
        )
        assert result.exit_code == 0, result.output
    assert len(reports) == 2
    result = invoke("compare-runs", tmp_path / GEMMA, tmp_path / LLAMA, "--json")
    comparison = json.loads(result.stdout)
    both, neither = comparison["right_in_both"], comparison["wrong_in_both"]
    first, second = comparison["right_in_first_only"], comparison["right_in_second_only"]
    assert both + first == round(0.6428571 * 350) == 225
    assert both + second == round(0.6228571 * 350) == 218
    assert both + neither + first + second == 350
    assert comparison["mcnemar"]["only_first"] == first
    assert 0 < comparison["mcnemar"]["exact_p"] < 1
    result = invoke("compare-runs", tmp_path / GEMMA, tmp_path / LLAMA, "--limit", 2)
    assert "-2.00" in result.stdout
    leaderboard = json.loads(invoke("leaderboard", "judgebench", tmp_path, "--json").stdout)
    models = [row["model"] for row in leaderboard]
    assert models.index(GEMMA) < models.index(LLAMA)


def test_conflicting_options_are_usage_errors(tmp_path: Path) -> None:
    scores = tmp_path / "scores.jsonl"
    scores.write_text("")
    out = ("-o", tmp_path / "out")
    for arguments, message in (
        (("rmb",), "give a folder: -o DIR"),
        (("rmb", *out), "give --model NAME, --url URL or --scores FILE"),
        (("jokes", *out), "'jokes' is not one of"),
        (
            ("rmb", *out, "--scores", scores, "--model", "demo"),
            "--scores already provides the rewards",
        ),
        (
            ("rmb", *out, "--scores", scores, "--max-length", 9),
            "--max-length has no effect with --scores",
        ),
        (("rmb", *out, "--model", "demo", "--name", "x"), "--name requires --scores"),
        (("rmb", *out, "--url", "http://x", "--dtype", "float32"), "--dtype is a setting of the"),
        (("rewardbench", *out, "--model", "demo", "--variant", "xstest"), "has no value"),
    ):
        result = invoke("eval", *arguments)
        assert result.exit_code == 2, arguments
        assert message in result.output
    result = invoke("eval", "rewardbench", *out, "--model", "demo", "--variant", "xstest=none")
    assert result.exit_code == 1
    assert "fixed or swapped" in result.output
    assert not (tmp_path / "out").exists()


def test_variant_help_lists_variants() -> None:
    result = invoke("eval", "rewardbench", "--variant", "help")
    assert result.exit_code == 0
    assert "xstest=fixed|swapped" in result.stdout


@pytest.mark.skipif(
    not REWARDMATH.is_dir(), reason="the published rewards of RewardMATH are missing"
)
def test_published_rewards_of_rewardmath_give_published_results(tmp_path: Path) -> None:
    """The items come from the file of rewards; the pairs of math-prm are a part of them."""
    scores = REWARDMATH / "skywork_llama3_reward.json"
    arguments = ("eval", "rewardmath", "--name", LLAMA, "-o", tmp_path / "out", "--scores")
    result = invoke(*arguments, scores)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["num_items"], summary["partial"]) == (483, False)
    assert summary["overall"] == 107 / 483
    assert {name: round(v, 3) for name, v in summary["metrics"].items()} == {
        "pairs": 0.715,
        "mrr": 0.447,
    }
    assert "comparison with published results" in result.stdout
    assert "-0.00" not in result.stdout
    again = invoke("leaderboard", "rewardmath", tmp_path / "out", "--json")
    rows = [row for row in json.loads(again.stdout) if row["model"].endswith(LLAMA)]
    published, local = sorted(rows, key=lambda row: row["folder"] is not None)
    assert local["figures"] == pytest.approx(published["figures"], abs=1e-4)
    result = invoke(
        *arguments, REWARDMATH / "rewardbench_math_prm_skywork_llama3.json", "--overwrite"
    )
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["overall"] == 433 / 447
    assert summary["missing"][0] == "has 447 of 483 problems"


def test_missing_data_is_a_one_line_error(tmp_path: Path) -> None:
    result = invoke(
        "eval", "rmb", "--model", "demo", "-o", tmp_path / "out", "--data", tmp_path / "no"
    )
    assert result.exit_code == 1
    assert "Error: the file or folder " in result.output
    assert "Traceback" not in result.output


def test_leaderboard_prints_every_benchmark() -> None:
    step_model = "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B"
    models = {
        "processbench": step_model,
        "prmbench": step_model,
        "best-of-n": "",
        "vl-rewardbench": "Skywork/Skywork-VL-Reward-7B",
        "rewardmath": LLAMA,
        "m-rewardbench": "",
        "plan-rewardbench": "Skywork/Skywork-Reward-V2-Llama-3.1-8B",
    }
    for name in BENCHMARK_NAMES:
        result = invoke("leaderboard", name)
        assert result.exit_code == 0, result.output
        assert models.get(name, "Skywork/Skywork-Reward-V2-Llama-3.1-8B-40M") in result.stdout
