"""Two runs item by item: what changed, and whether that can be chance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_files
import pytest
from click.testing import CliRunner

from serve.cli.main import main
from serve.errors import EvaluationError
from serve.evaluation.compare import RunComparison, compare, load_run
from serve.evaluation.compare_console import print_comparison, to_dict

Evaluate = Callable[..., tuple[int, list[str]]]


def run_of(path: Path, **given: Any) -> Any:
    options = {"benchmark": None, "data": None, "split": None, **given}
    return load_run(path, notify=lambda text: None, **options)


def rescored(folder: Path, path: Path, change: Callable[[list[float]], list[float]]) -> Path:
    """A file of rewards beside nothing: those of a folder, changed."""
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


def counted(found: RunComparison) -> tuple[int, int, int, int]:
    return found.counts


def test_a_run_with_itself(base: Path) -> None:
    found = compare(run_of(base), run_of(base))
    both, only_first, only_second, neither = found.counts
    assert (only_first, only_second) == (0, 0)
    assert both + neither == found.num_items == 12
    assert found.agreement == 1
    assert found.test.exact_p == 1
    assert found.correlation == pytest.approx((1, 1))
    assert not found.flipped_items


def test_all_rewards_negated(base: Path, tmp_path: Path) -> None:
    other = rescored(base, tmp_path / "b" / "scores.jsonl", lambda r: [-x for x in r])
    data = str(tmp_path / "data" / "rewardbench")
    found = compare(run_of(base), run_of(other, benchmark="rewardbench", data=data))
    both, only_first, only_second, neither = found.counts
    assert (both, neither) == (0, 0)
    assert only_first + only_second == 12
    assert found.agreement == 0
    assert found.correlation == pytest.approx((-1, -1))
    shifts = [abs(one.shift) for one in found.flipped_items]
    assert shifts == sorted(shifts, reverse=True)
    for one in found.flipped_items:
        assert one.now_right == (one.margins[1] > 0) != (one.margins[0] > 0)
    # As the formula of the binomial test says.
    assert found.test.only_first == only_first


def test_ties_are_wrong_and_items_that_one_lacks_are_left_out(base: Path, tmp_path: Path) -> None:
    other = rescored(base, tmp_path / "b" / "scores.jsonl", lambda r: [0.0, 0.0])
    other.write_text("".join(other.read_text().splitlines(keepends=True)[:7]))
    data = str(tmp_path / "data" / "rewardbench")
    found = compare(run_of(base), run_of(other, benchmark="rewardbench", data=data))
    assert found.num_items == 7
    assert found.only == (5, 0)
    assert [len(run.scored_items) for run in found.runs] == [7, 7]
    assert found.counts[0] == found.counts[2] == 0
    assert found.correlation is None


def test_comparisons_are_what_rm_bench_counts(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate("rm-bench")
    found = compare(run_of(tmp_path / "out"), run_of(tmp_path / "out"))
    assert found.unit == "comparisons"
    assert sum(found.counts) == 9 * found.num_items == 9 * 15
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert found.counts[0] / sum(found.counts) == pytest.approx(
        sum(summary["subsets"].values()) / 5
    )


def test_a_tie_of_judgebench_is_right_where_the_label_is_b(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    evaluate("judgebench")
    out = tmp_path / "out"
    tied = rescored(out, tmp_path / "tied" / "scores.jsonl", lambda r: [1.0, 1.0])
    data = str(tmp_path / "data" / "judgebench")
    first = run_of(tied, benchmark="judgebench", data=data)
    assert counted(compare(first, first)) == (3, 0, 0, 3)


def test_options_of_a_folder_are_its_own(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate(options={"xstest": "swapped"})
    run = run_of(tmp_path / "out")
    assert run.benchmark.options.to_dict()["xstest"] == "swapped"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert run.result.overall == summary["overall"]


def test_shown_and_as_data(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = rescored(base, tmp_path / "b" / "scores.jsonl", lambda r: [-x for x in r])
    data = str(tmp_path / "data" / "rewardbench")
    found = compare(run_of(base), run_of(other, benchmark="rewardbench", data=data))
    print_comparison(found, show=3)
    shown = capsys.readouterr().out
    assert "right in fake only" in shown
    assert "McNemar, exact p" in shown
    assert "Largest shifts of the margin, 3 of 12" in shown
    plain = json.loads(json.dumps(to_dict(found)))
    assert plain["right_in_first_only"] == found.counts[1]
    assert plain["figures"]["overall"] == [run.result.overall for run in found.runs]
    assert len(plain["changed"]) == 12


@pytest.mark.parametrize("turned", [False, True])
def test_a_file_is_of_the_benchmark_of_the_other_run(
    base: Path, tmp_path: Path, turned: bool
) -> None:
    other = rescored(base, tmp_path / "b" / "scores.jsonl", lambda r: r)
    runs = [str(other), str(base)] if turned else [str(base), str(other)]
    data = str(tmp_path / "data" / "rewardbench")
    done = CliRunner().invoke(main, ["compare-runs", *runs, "--data", data, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["agreement"] == 1


def test_what_cannot_be_compared(evaluate: Evaluate, base: Path, tmp_path: Path) -> None:
    evaluate("judgebench", "judged")
    with pytest.raises(EvaluationError, match=r"of rewardbench and .* of judgebench"):
        compare(run_of(base), run_of(tmp_path / "judged"))
    rows = {"filtered.jsonl": benchmark_files.rewardbench(seed=1)}
    evaluate(output="other", data=benchmark_files.write(tmp_path / "rows", rows))
    with pytest.raises(EvaluationError, match="has other texts"):
        compare(run_of(base), run_of(tmp_path / "other"))
    alone = rescored(base, tmp_path / "alone" / "s.jsonl", lambda r: r)
    with pytest.raises(EvaluationError, match="give --benchmark"):
        run_of(alone)
    with pytest.raises(EvaluationError, match="give them by --data"):
        run_of(alone, benchmark="rewardbench")
    with pytest.raises(EvaluationError, match="of rewardbench, not of rmb"):
        run_of(base, benchmark="rmb")
