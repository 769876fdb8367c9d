"""Leaderboards and comparisons over all benchmarks, and their page."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import benchmark_files
import pytest
from command_line import invoke
from evaluations import NASTY
from html_pages import check_page, text_of

from rm_core import find_entry, load_catalog
from rm_core.benchmarks.registry import BENCHMARKS
from serve.evaluation.console import print_overview, print_table
from serve.evaluation.leaderboard import build_leaderboard, get_sort_metric, read_local_results
from serve.evaluation.leaderboard_page import write_leaderboard_page
from serve.evaluation.overview import SEVEN, Overview, build_overview, choose_benchmarks
from serve.evaluation.result import Evaluation

Evaluate = Callable[..., tuple[int, list[str]]]
CHECKPOINT = "Skywork/Skywork-Reward-V2-Qwen3-0.6B"
JUDGED = ("rewardbench", "rm-bench", "rmb", "judgebench", "ppe-preference")
STEPS = ("processbench", "prmbench")


def write_scores(folder: Path, path: Path, kind: str, seed: int) -> Path:
    """Write random numbers of a model of this kind for the items of an evaluation."""
    rng, scores = random.Random(seed), []
    for line in (folder / "items.jsonl").read_text().splitlines():
        item = json.loads(line)
        pairs = {(min(pair), max(pair)) for pair in item["preferences"]}
        numbers: dict[str, Any] = {
            "classifier": {"rewards": [rng.random() for _ in item["responses"]]},
            "step": {"step_rewards": [[rng.random(), rng.random()] for _ in item["responses"]]},
            "judge": {"log_odds": [[rng.gauss(0, 1), rng.gauss(0, 1)] for _ in pairs]},
        }
        scores.append({"id": item["id"], "subset": item["subset"], **numbers[kind]})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(benchmark_files.lines(scores))
    return path


def choose_kind(benchmark: str, number: int) -> str:
    """Kind of a model's numbers: a judge or a step model where the benchmark takes one."""
    if number and benchmark in JUDGED:
        return "judge"
    return "step" if number and benchmark == "best-of-n" else "classifier"


@pytest.fixture
def results(evaluate: Evaluate, reports: dict[Path, Sequence[Evaluation]], tmp_path: Path) -> Path:
    """Evaluations of every benchmark in `results/MODEL/BENCHMARK`, of two models."""
    for name in BENCHMARKS:
        data = benchmark_files.write(tmp_path / "data" / name, benchmark_files.EVERY[name])
        evaluate(name, f"items/{name}", data=data)
        for number, model in enumerate(("first", "second")):
            kind = choose_kind(name, number)
            path = tmp_path / "scores" / f"{name}-{number}.jsonl"
            scores = write_scores(tmp_path / "items" / name, path, kind, seed=number)
            output = f"results/{model}/{name}"
            assert evaluate(name, output, data=data, scores=scores, model_name=model)[0] == 0
    assert reports
    return tmp_path / "results"


def write_summary(folder: Path, benchmark: str, model: str, overall: float, **more: Any) -> Path:
    folder.mkdir(parents=True)
    summary = {
        "benchmark": benchmark, "model": model, "num_items": 3, "overall": overall,
        "mean_of_sections": overall, "sections": {}, "subsets": {}, "missing": [], "failed": [],
        **more,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def overview_of(folder: Path, *names: str) -> Overview:
    results = read_local_results([folder])
    return build_overview(choose_benchmarks(names, results), results)


def test_folders_tell_models_of_one_name_apart(tmp_path: Path) -> None:
    for run in ("one", "two"):
        write_summary(tmp_path / run / "rm-bench", "rm-bench", "mine", 0.5)
    write_summary(tmp_path / "two" / "judgebench", "judgebench", "mine", 0.5)
    local = {row.model for row in overview_of(tmp_path).rows if row.is_local}
    assert local == {f"mine ({tmp_path / 'one/rm-bench'})", f"mine ({tmp_path / 'two'})"}


def test_every_benchmark_has_leaderboard(results: Path) -> None:
    for name in BENCHMARKS:
        result = invoke("leaderboard", name, results)
        assert result.exit_code == 0, result.output
        assert "> first (partial)" in result.stdout or name == "best-of-n"
        assert "…" not in result.stdout
        rows = build_leaderboard(name, [results])
        has_published = any(row.folder is None for row in rows)
        sentence = f"{BENCHMARKS[name].title}: the catalogue has no published results."
        assert (sentence in result.stdout) == (not has_published)
        values = [row.figures.get(get_sort_metric(name)) for row in rows if not row.missing]
        numbers = [value for value in values if value is not None]
        assert numbers == sorted(numbers, reverse=True)
        assert [bool(row.missing) for row in rows] == sorted(bool(row.missing) for row in rows)
        assert {row.model for row in rows if row.folder} == {"first", "second"}


def test_leaderboard_over_all_benchmarks_has_every_local_result(results: Path) -> None:
    overview = overview_of(results)
    assert overview.benchmarks == tuple(BENCHMARKS)
    local = [row for row in overview.rows if row.is_local]
    assert {row.model for row in local} == {"first", "second"}
    for row in local:
        assert tuple(row.cells) == tuple(BENCHMARKS)
        # All but best-of-n are parts of their benchmarks.
        assert [name for name, cell in row.cells.items() if not cell.missing] == ["best-of-n"]
        assert row.mean is None
        for name, cell in row.cells.items():
            assert cell.folder == str(results / row.model / name)
            summary = json.loads((results / row.model / name / "summary.json").read_text())
            metric = "mean_of_sections" if name == "judgebench" else "overall"
            assert cell.value == summary[metric]
    as_json = json.loads(invoke("leaderboard", results, "--json").stdout)
    assert as_json == json.loads(json.dumps(overview.to_dict()))
    assert as_json["benchmarks"]["judgebench"] == "mean_of_sections"
    printed = invoke("leaderboard", results).stdout
    assert "> first" in printed
    assert "first, rm-bench (partial): subset chat: has 3 of 129 items" in printed
    assert "M-RewardBench: the catalogue has no published results." in printed


def test_means_of_published_rows_are_those_of_the_publication() -> None:
    overview = build_overview(SEVEN, [])
    published = {
        entry.id: row.value / 100
        for entry in load_catalog()
        for row in entry.published
        if (row.benchmark, row.source) == ("average-of-seven", "reward-v2-readme")
    }
    means = {row.model: row.mean for row in overview.rows if row.mean is not None}
    assert len(published) == 10
    assert means == pytest.approx(published, abs=0.0006)
    ranked = [row.mean for row in overview.rows if row.mean is not None]
    assert ranked == sorted(ranked, reverse=True)
    assert [row.mean for row in overview.rows[: len(ranked)]] == ranked
    # With more columns, only the mean of seven is left, of the same results.
    all_columns = overview_of_published()
    assert {r.model: r.mean_of_seven for r in all_columns.rows if r.mean_of_seven} == means
    assert all_columns.has_seven
    assert not overview.has_seven
    assert all(row.mean is None for row in all_columns.rows)


def overview_of_published() -> Overview:
    return build_overview(choose_benchmarks((), []), [])


def test_without_folders_all_published_benchmarks_are_shown() -> None:
    benchmarks = overview_of_published().benchmarks
    assert set(BENCHMARKS) - set(benchmarks) == {"best-of-n", "m-rewardbench"}
    assert json.loads(invoke("leaderboard", "--json").stdout)["benchmarks"].keys() == {*benchmarks}
    everything = json.loads(invoke("leaderboard", "all", "--json").stdout)
    assert list(everything["benchmarks"]) == list(BENCHMARKS)


def test_partial_and_missing_results_leave_no_mean(tmp_path: Path) -> None:
    for name, model, overall in (
        ("rmb", "whole", 0.5), ("rm-bench", "whole", 0.7), ("rmb", "half", 0.9),
        ("rm-bench", "half", 0.9), ("rmb", "lone", 0.99),
    ):  # fmt: skip
        missing = ["section x: no items"] if (name, model) == ("rmb", "half") else []
        write_summary(tmp_path / model / name, name, model, overall, missing=missing)
    overview = overview_of(tmp_path)
    assert overview.benchmarks == ("rm-bench", "rmb")
    rows = {row.model: row for row in overview.rows if row.is_local}
    assert rows["whole"].mean == pytest.approx(0.6)
    assert rows["half"].mean is None
    assert rows["lone"].mean is None
    assert rows["half"].cells["rmb"].missing == ("section x: no items",)
    models = [row.model for row in overview.rows]
    assert models.index("whole") < models.index("half") < len(models)
    print_overview(overview)


def test_local_result_of_a_checkpoint_is_next_to_the_published_one(tmp_path: Path) -> None:
    write_summary(tmp_path / "a", "rm-bench", CHECKPOINT, 0.75)
    write_summary(tmp_path / "b", "rmb", CHECKPOINT, 0.99, missing=["x"])
    overview = overview_of(tmp_path)
    (local,) = (row for row in overview.rows if row.is_local)
    entry = find_entry(CHECKPOINT)
    assert entry is not None
    published = {
        row.benchmark: row.value / 100
        for row in entry.published
        if row.source == "reward-v2-readme"
    }
    cell = local.cells["rm-bench"]
    assert cell.published is not None
    assert cell.published.value == published["rm-bench"]
    assert cell.difference == pytest.approx(0.75 - published["rm-bench"])
    # A part of a benchmark is not compared.
    assert local.cells["rmb"].published is not None
    assert local.cells["rmb"].difference is None


def test_published_result_of_the_source_with_most_columns_is_taken() -> None:
    """Three runs of one checkpoint on RewardBench are published; one source has all seven."""
    overview = build_overview(SEVEN, [])
    (row,) = (r for r in overview.rows if r.model == "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2")
    assert len({cell.source for cell in row.cells.values()}) == 1
    alone = build_overview(["rewardbench"], [])
    (row,) = (r for r in alone.rows if r.model == "Skywork/Skywork-Reward-Gemma-2-27B")
    assert row.cells["rewardbench"].value == 0.938


@pytest.mark.parametrize(
    ("places", "rows"),
    [
        # MODEL/BENCHMARK of two models with one name.
        ({"x/rmb": {}, "x/rm-bench": {}, "y/rmb": {}}, [{"x/rmb", "x/rm-bench"}, {"y/rmb"}]),
        # BENCHMARK/MODEL.
        (
            {"rmb/x": {}, "rmb/y": {}, "rm-bench/y": {}, "rm-bench/x": {}},
            [{"rmb/x", "rm-bench/x"}, {"rmb/y", "rm-bench/y"}],
        ),
        # Two revisions, in folders without an order.
        (
            {"a": {"revision": "1"}, "b": {"revision": "2"}, "c": {"revision": "1"}},
            [{"a", "c"}, {"b"}],
        ),
        # Rewards from a file have no fingerprint.
        ({"a": {"revision": "1"}, "b": {}}, [{"a", "b"}]),
        ({"a": {"version": "step-1"}, "b": {"version": "step-2"}}, [{"a"}, {"b"}]),
    ],
)
def test_results_of_one_model_share_a_row(
    tmp_path: Path, places: dict[str, dict[str, str]], rows: list[set[str]]
) -> None:
    benchmarks = {"a": "rmb", "b": "rm-bench", "c": "judgebench"}
    for place, used in places.items():
        name = next((part for part in place.split("/") if part in BENCHMARKS), None)
        write_summary(tmp_path / place, name or benchmarks[place], "mine", 0.5, used=used)
    local = [row for row in overview_of(tmp_path).rows if row.is_local]
    found = [
        {os.path.relpath(cell.folder or "", tmp_path) for cell in row.cells.values()}
        for row in local
    ]
    assert sorted(map(sorted, found)) == sorted(map(sorted, rows))


def test_variant_is_marked(tmp_path: Path) -> None:
    write_summary(tmp_path / "a", "judgebench", "mine", 0.5, used={"orders": "both"})
    write_summary(tmp_path / "b", "rmb", "mine", 0.5)
    printed = invoke("leaderboard", tmp_path).stdout
    assert "50.00*" in printed
    assert "mine, judgebench (variant): orders=both" in printed
    assert "> mine (variant)" in invoke("leaderboard", "judgebench", tmp_path).stdout


def test_arguments_are_benchmarks_and_folders(tmp_path: Path) -> None:
    folder = write_summary(tmp_path / "a", "rmb", "mine", 0.5)
    for arguments in (("RMB", folder), (folder, "rmb")):
        assert "> mine" in invoke("leaderboard", *arguments).stdout
    for arguments, message in (
        (("ppe",), "'ppe' is neither a folder nor one of the benchmarks rewardbench, "),
        (("ppe",), "Did you mean ppe-preference or ppe-correctness?"),
        (("rm_bench",), "Did you mean rm-bench?"),
        (("rmb", folder / "summary.json"), "is neither a folder nor one of"),
    ):
        result = invoke("leaderboard", *arguments)
        assert result.exit_code == 2
        assert message in result.output
    result = invoke("eval", "rewardbench_2", "--model", "demo", "-o", tmp_path / "x")
    assert result.exit_code == 2
    assert "Did you mean rewardbench2" in result.output
    result = invoke("leaderboard", "judgebench", folder)
    assert result.exit_code == 1
    assert "has evaluations of rmb, not of judgebench" in result.output
    result = invoke("leaderboard", "m-rewardbench")
    assert "M-RewardBench: the catalogue has no published results." in result.stdout
    assert "Give the folder of an evaluation" in result.stdout
    (tmp_path / "empty").mkdir()
    result = invoke("leaderboard", tmp_path / "empty")
    assert result.exit_code == 1
    assert "has no summary.json, and no folder below it has one" in result.output
    (folder / "summary.json").write_text(
        (folder / "summary.json").read_text().replace("rmb", "rmb-2")
    )
    assert "of the benchmark 'rmb-2', which this version" in invoke("leaderboard", folder).output


def test_wide_table_is_printed_in_parts(capsys: pytest.CaptureFixture[str]) -> None:
    heads = ["model", *(f"column-number-{n}" for n in range(30)), "source"]
    rows = [[f"model-{m}", *(f"{m}{n}.5" for n in range(30)), "a b " * 30] for m in range(3)]
    print_table("Title", heads, rows)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 160
    assert printed.count("Title") == printed.count("model-1") > 1
    cells = re.findall(r"\b\d+\.5\b", printed)
    assert sorted(cells) == sorted(cell for row in rows for cell in row[1:-1])


def render(folder: Path, *names: str) -> str:
    results = read_local_results([folder])
    path = folder / "page.html"
    write_leaderboard_page(path, choose_benchmarks(names, results), results)
    return path.read_text(encoding="utf-8")


def test_page_has_table_and_section_of_every_benchmark(results: Path) -> None:
    (results / "first" / "rm-bench" / "report.html").write_text("<p>report</p>")
    page = render(results)
    check_page(page)
    text = text_of(page)
    for name in BENCHMARKS:
        assert f'<section id="{name}">' in page
        assert f'href="#{name}"' in page
    assert "26 partial results" in text
    assert "first, RM-Bench: subset chat: has 3 of 129 items" in text
    links = [unquote(link) for link in re.findall(r'href="([^#"]*)"', page)]
    assert set(links) == {"first/rm-bench/report.html"}
    assert (results / links[0]).read_text() == "<p>report</p>"
    for folder in results.glob("*/*"):
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["used"]["items_sha256"] in text
    assert page == render(results)


def test_page_shows_differences_and_provenance(tmp_path: Path) -> None:
    used = {"revision": "abc", "num_truncated": 7, "max_length": 2048, "truncation": "left"}
    failed = [{"id": "1", "subset": "x", "code": "conversation_too_long"}] * 3
    sections = {"chat": 0.5, "math": 0.25}
    counts = {
        "sections": {
            name: {"num_items": 4, "num_expected": 4, "num_correct": 4 * value}
            for name, value in sections.items()
        }
    }
    more = {"used": used, "sections": sections, "counts": counts}
    write_summary(tmp_path / "a", "rm-bench", CHECKPOINT, 0.75, **more)
    write_summary(tmp_path / "b", "rmb", NASTY, 0.25, failed=failed)
    page = render(tmp_path)
    check_page(page)
    text = text_of(page)
    assert "74.4, +0.60" in text  # the published result and the difference
    assert "revision abc" in text
    assert "2,048" in text
    assert "3 conversation_too_long" in text
    assert "3 items could not be scored" in text
    assert "script&gt; &amp; \u8bed\u8a00" in page
    assert "<script" not in page
    assert page.count('role="img"') == 1  # the sections of RM-Bench as bars
    assert "interval" in page
    # One benchmark has no table over all.
    alone = render(tmp_path, "rm-bench")
    assert "<h2>Overall</h2>" not in alone
    assert "+0.60" in text_of(alone)


def test_command_writes_page(tmp_path: Path) -> None:
    write_summary(tmp_path / "a", "rm-bench", "mine", 0.75)
    result = invoke("leaderboard", tmp_path, "-o", tmp_path / "page.html")
    assert result.exit_code == 0
    assert "written to" in result.stderr
    check_page((tmp_path / "page.html").read_text())
    result = invoke("leaderboard", tmp_path, "-o", tmp_path / "missing" / "page.html")
    assert result.exit_code == 1
    assert "missing" in result.output


def test_folders_are_compared_by_benchmark(results: Path) -> None:
    result = invoke("compare-runs", results / "first", results / "second", "--json")
    assert result.exit_code == 0, result.output
    comparison = json.loads(result.stdout)
    assert list(comparison["benchmarks"]) == list(BENCHMARKS)
    for name, one in comparison["benchmarks"].items():
        assert one["num_items"] > 0
        has_margins = name not in (*STEPS, "best-of-n")
        assert (one["margins"]["pearson"] is not None) == has_margins
        assert (one["pearson"] is not None) == (name not in JUDGED)
        for index, model in enumerate(("first", "second")):
            summary = json.loads((results / model / name / "summary.json").read_text())
            assert one["figures"]["overall"][index] == summary["overall"]
    languages = comparison["benchmarks"]["m-rewardbench"]["figures"]
    assert {"deu_Latn", "zho_Hans"} <= languages.keys()
    assert {"mrr", "pairs"} <= comparison["benchmarks"]["rewardmath"]["figures"].keys()
    assert "best of 2" in comparison["benchmarks"]["ppe-correctness"]["figures"]
    assert {"f1", "circular"} <= comparison["benchmarks"]["prmbench"]["figures"].keys()
    printed = invoke("compare-runs", results / "first", results / "second")
    for name in BENCHMARKS:
        assert re.search(rf"│ {name} +│", printed.stdout)
        assert f"comparing {name}" in printed.stderr


def test_folders_with_different_benchmarks(results: Path, tmp_path: Path) -> None:
    for model, names in (("first", ("rmb", "rm-bench", "judgebench")), ("second", ("prmbench",))):
        for name in names:
            folder = results / model / name
            folder.rename(tmp_path / f"{model}-{name}")
    both = (results / "first", results / "second")
    printed = invoke("compare-runs", *both, "--benchmark", "rewardmath").stdout
    assert "What changed" in printed
    assert "mrr" in printed
    comparison = json.loads(invoke("compare-runs", *both, "--json").stdout)
    assert comparison["only_first"] == ["prmbench"]
    assert comparison["only_second"] == ["rm-bench", "rmb", "judgebench"]
    printed = invoke("compare-runs", *both).stdout
    assert "only in" in printed
    assert "rm-bench, rmb, judgebench" in printed
    # A single evaluation is compared with that of its benchmark.
    comparison = json.loads(
        invoke("compare-runs", both[0] / "rewardmath", both[1], "--json").stdout
    )
    assert list(comparison["benchmarks"]) == ["rewardmath"]
    for arguments, message in (
        ((*both, "--benchmark", "rmb"), "has no evaluation of rmb"),
        ((results, both[0]), "has two evaluations of "),
        ((both[0] / "prmbench", both[1]), "have no benchmark in common"),
        ((both[0] / "rewardmath" / "scores.jsonl", both[1]), "is a file, and the other run is"),
    ):
        result = invoke("compare-runs", *arguments)
        assert result.exit_code == 1, arguments
        assert message in result.output
    result = invoke("compare-runs", *both, "--data", "x")
    assert result.exit_code == 2
    assert "--data is for one benchmark" in result.output


def test_pair_that_is_not_comparable_does_not_stop_the_others(
    results: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    scores = tmp_path / "scores" / "judgebench-1.jsonl"
    changed = {"options": {"orders": "both"}, "data": tmp_path / "data" / "judgebench"}
    evaluate("judgebench", "results/second/judgebench", scores=scores, **changed)
    result = invoke("compare-runs", results / "first", results / "second")
    assert result.exit_code == 3
    assert "judgebench is not compared: " in result.stdout
    assert "orders=one" in result.stdout
    assert re.search(r"│ rmb +│", result.stdout)
