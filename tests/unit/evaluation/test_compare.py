"""Item-by-item comparison of two runs, and its significance test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_files
import pytest
from click.testing import CliRunner

from rm_core.benchmarks.registry import BENCHMARKS
from serve.cli.main import main
from serve.errors import EvaluationError
from serve.evaluation.compare import compare, load_run, load_runs
from serve.evaluation.console import print_comparison

Evaluate = Callable[..., tuple[int, list[str]]]


def load(path: Path, **overrides: Any) -> Any:
    options = {"benchmark": None, "data": None, "split": None, **overrides}
    return load_run(path, notify=lambda line: None, **options)


def write_changed_scores(
    folder: Path, path: Path, change: Callable[[list[float]], list[float]]
) -> Path:
    """Write changed rewards of an evaluation to a file without a summary next to it."""
    records = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    for record in records:
        record["rewards"] = change(record["rewards"])
    path.parent.mkdir(exist_ok=True)
    path.write_text(benchmark_files.lines(records))
    return path


@pytest.fixture
def base(evaluate: Evaluate, tmp_path: Path) -> Path:
    evaluate()
    return tmp_path / "out"


def test_run_equals_itself(base: Path) -> None:
    comparison = compare(load(base), load(base))
    both, only_first, only_second, neither = comparison.counts
    assert (only_first, only_second) == (0, 0)
    assert both + neither == comparison.num_items == 12
    assert comparison.agreement == 1
    assert comparison.test.exact_p == 1
    assert comparison.correlations["rewards"] == pytest.approx((1, 1))
    assert not comparison.flipped_items


def test_negated_rewards_flip_all_items(base: Path, tmp_path: Path) -> None:
    other = write_changed_scores(base, tmp_path / "b" / "scores.jsonl", lambda r: [-x for x in r])
    data = str(tmp_path / "data" / "rewardbench")
    comparison = compare(load(base), load(other, benchmark="rewardbench", data=data))
    both, only_first, only_second, neither = comparison.counts
    assert (both, neither) == (0, 0)
    assert only_first + only_second == 12
    assert comparison.agreement == 0
    assert comparison.correlations["rewards"] == pytest.approx((-1, -1))
    shifts = [abs(flipped.shift) for flipped in comparison.flipped_items]
    assert shifts == sorted(shifts, reverse=True)
    for flipped in comparison.flipped_items:
        assert flipped.now_right == (flipped.margins[1] > 0) != (flipped.margins[0] > 0)
    assert comparison.test.only_first == only_first


def test_ties_are_wrong_and_missing_items_are_excluded(base: Path, tmp_path: Path) -> None:
    other = write_changed_scores(base, tmp_path / "b" / "scores.jsonl", lambda r: [0.0, 0.0])
    other.write_text("".join(other.read_text().splitlines(keepends=True)[:7]))
    data = str(tmp_path / "data" / "rewardbench")
    comparison = compare(load(base), load(other, benchmark="rewardbench", data=data))
    assert comparison.num_items == 7
    assert comparison.only == (5, 0)
    assert [len(run.scored_items) for run in comparison.runs] == [7, 7]
    assert comparison.counts[0] == comparison.counts[2] == 0
    assert not comparison.correlations


def test_rm_bench_counts_comparisons(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate("rm-bench")
    comparison = compare(load(tmp_path / "out"), load(tmp_path / "out"))
    assert comparison.unit == "comparisons"
    assert sum(comparison.counts) == 9 * comparison.num_items == 9 * 15
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert comparison.counts[0] / sum(comparison.counts) == pytest.approx(
        sum(summary["subsets"].values()) / 5
    )


def test_judgebench_tie_is_right_if_label_is_b(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate("judgebench")
    out = tmp_path / "out"
    tied = write_changed_scores(out, tmp_path / "tied" / "scores.jsonl", lambda r: [1.0, 1.0])
    data = str(tmp_path / "data" / "judgebench")
    run = load(tied, benchmark="judgebench", data=data)
    assert compare(run, run).counts == (3, 0, 0, 3)


def test_runs_without_comparisons_have_no_agreement(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without correct solutions ProcessBench has no threshold, so that no item is graded."""
    rows = [row for row in benchmark_files.processbench()["gsm8k.json"] if row["label"] >= 0]
    evaluate("processbench", data=benchmark_files.write(tmp_path / "wrong", {"gsm8k.json": rows}))
    run = load(tmp_path / "out")
    comparison = compare(run, run)
    assert (sum(comparison.counts), comparison.num_items) == (0, len(rows))
    assert comparison.to_dict()["agreement"] is None
    print_comparison(comparison, show=3)
    (line,) = (one for one in capsys.readouterr().out.splitlines() if "agreement" in one)
    assert line.split("│")[2].strip() == "-"


def test_run_has_options_of_its_folder(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate(options={"xstest": "swapped"})
    run = load(tmp_path / "out")
    assert run.benchmark.options.to_dict()["xstest"] == "swapped"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert run.metrics["overall"] == summary["overall"]


def test_comparison_as_table_and_as_json(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_changed_scores(base, tmp_path / "b" / "scores.jsonl", lambda r: [-x for x in r])
    data = str(tmp_path / "data" / "rewardbench")
    comparison = compare(load(base), load(other, benchmark="rewardbench", data=data))
    print_comparison(comparison, show=3)
    printed = capsys.readouterr().out
    assert "right in fake only" in printed
    assert "McNemar, exact p" in printed
    assert "Largest margin shifts, 3 of 12" in printed
    as_json = json.loads(json.dumps(comparison.to_dict()))
    assert as_json["right_in_first_only"] == comparison.counts[1]
    assert as_json["figures"]["overall"] == [run.metrics["overall"] for run in comparison.runs]
    assert len(as_json["changed"]) == 12


@pytest.mark.parametrize("swapped", [False, True])
def test_score_file_gets_benchmark_of_other_run(base: Path, tmp_path: Path, swapped: bool) -> None:
    other = write_changed_scores(base, tmp_path / "b" / "scores.jsonl", lambda r: r)
    runs = [str(other), str(base)] if swapped else [str(base), str(other)]
    data = str(tmp_path / "data" / "rewardbench")
    result = CliRunner().invoke(main, ["compare-runs", *runs, "--data", data, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["agreement"] == 1


def test_score_file_alone_has_items_and_variant_of_other_run(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    evaluate("judgebench", options={"orders": "both"})
    out = tmp_path / "out"
    tied = write_changed_scores(out, tmp_path / "tied" / "scores.jsonl", lambda r: [1.0, 1.0])
    for paths in ((out, tied), (tied, out)):
        runs = load_runs(paths, benchmark=None, data=None, split=None, notify=print)
        assert [run.benchmark.options.to_dict()["orders"] for run in runs] == ["both"] * 2
        # Equal rewards are always wrong in this variant.
        assert runs[paths.index(tied)].metrics["overall"] == 0
        assert compare(*runs).num_items == 6


@pytest.mark.parametrize(
    ("name", "variant", "value", "other"),
    [
        ("rewardbench", "xstest", "swapped", "fixed"),
        ("judgebench", "orders", "both", "one"),
        ("processbench", "threshold", "0.5", "gsm8k"),
        ("prmbench", "threshold", "0.25", "preparation"),
        ("best-of-n", "aggregation", "min", "last"),
    ],
)
def test_runs_of_two_variants_are_refused(
    evaluate: Evaluate, tmp_path: Path, name: str, variant: str, value: str, other: str
) -> None:
    evaluate(name)
    evaluate(name, "other", options={variant: value})
    with pytest.raises(
        EvaluationError, match=f"out has {variant}={other} and .*other has {variant}={value};"
    ):
        compare(load(tmp_path / "out"), load(tmp_path / "other"))


def test_runs_with_other_labels_are_refused(evaluate: Evaluate, tmp_path: Path) -> None:
    rows = benchmark_files.processbench()
    evaluate("processbench", data=benchmark_files.write(tmp_path / "rows", rows))
    changed = {name: [row | {"label": -1} for row in file] for name, file in rows.items()}
    evaluate("processbench", "other", data=benchmark_files.write(tmp_path / "changed", changed))
    with pytest.raises(EvaluationError, match="other labels"):
        compare(load(tmp_path / "out"), load(tmp_path / "other"))
    judged = benchmark_files.judgebench()
    evaluate("judgebench", "a", data=benchmark_files.write(tmp_path / "j", {"gpt.jsonl": judged}))
    judged[3]["label"] = "A>B" if judged[3]["label"] == "B>A" else "B>A"
    evaluate("judgebench", "b", data=benchmark_files.write(tmp_path / "k", {"gpt.jsonl": judged}))
    with pytest.raises(EvaluationError, match="other labels"):
        compare(load(tmp_path / "a"), load(tmp_path / "b"))


def test_items_from_data_equal_stored_items(evaluate: Evaluate, tmp_path: Path) -> None:
    """Stored items have lists where items from rows have tuples."""
    for name in BENCHMARKS:
        evaluate(name, name)
        folder = tmp_path / name
        data = str(tmp_path / "data" / name)
        assert compare(load(folder), load(folder, data=data)).num_items > 0


def test_incomparable_runs_raise_error(evaluate: Evaluate, base: Path, tmp_path: Path) -> None:
    evaluate("judgebench", "judged")
    with pytest.raises(EvaluationError, match=r"of rewardbench and .* of judgebench"):
        compare(load(base), load(tmp_path / "judged"))
    rows = {"filtered.jsonl": benchmark_files.rewardbench(seed=1)}
    evaluate(output="other", data=benchmark_files.write(tmp_path / "rows", rows))
    with pytest.raises(EvaluationError, match="has different texts"):
        compare(load(base), load(tmp_path / "other"))
    alone = write_changed_scores(base, tmp_path / "alone" / "s.jsonl", lambda r: r)
    with pytest.raises(EvaluationError, match="give --benchmark"):
        load(alone)
    with pytest.raises(EvaluationError, match="give their location with --data"):
        load(alone, benchmark="rewardbench")
    with pytest.raises(EvaluationError, match="of rewardbench, not of rmb"):
        load(base, benchmark="rmb")
