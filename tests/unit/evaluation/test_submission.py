"""Submissions: files equal those of each benchmark's own runner, and its readers read them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark_files
import numpy as np
import pandas as pd
import pytest
from checkpoints import PathOf
from command_line import invoke
from datasets import Dataset, load_dataset
from peers import peer_functions, peer_path
from published_rows import whole
from transformers import AutoTokenizer

import rm_core.benchmarks.rewardbench
from rm_core.benchmarks.registry import BENCHMARKS
from rm_core.benchmarks.rewardbench import PRIOR_SETS, SECTIONS
from serve.cli.eval import BENCHMARK_NAMES
from serve.errors import EvaluationError
from serve.evaluation.submission import write_submission

Evaluate = Callable[..., tuple[int, list[str]]]
VALUES = (-1.0, 0.25, 0.5, 2.0)
MODEL = "ORG/tiny-rm_0.1"


@pytest.fixture
def evaluate_whole(evaluate: Evaluate, tmp_path: Path) -> Callable[..., Path]:
    """Evaluate every row of a benchmark with random numbers; returns the folder."""

    def run(
        name: str, numbers: str = "rewards", *, model: str = MODEL, drop: int = 0, **options: str
    ) -> Path:
        rows_by_file: dict[str, list[Any]] = {}
        for row, origin in whole(name)[drop:]:
            rows_by_file.setdefault(origin.replace(".parquet", ".jsonl"), []).append(row)
        if options.get("prior_sets") == "on":
            row = whole("rewardbench")[0][0] | {"subset": None}
            for name_of_set, count in rm_core.benchmarks.rewardbench.PRIOR_SETS.items():
                rows_by_file[f"{name_of_set}.jsonl"] = [row | {"id": n} for n in range(count)]
        data = benchmark_files.write(tmp_path / f"{name}-rows", rows_by_file)
        rng, scores, benchmark = random.Random(3), [], BENCHMARKS[name]
        if options:
            benchmark = type(benchmark)(benchmark.options.from_strings(options))  # type: ignore[call-arg]
        for origin, rows in rows_by_file.items():
            for row in rows:
                item = benchmark.read(row, origin)
                rewards = [rng.choice(VALUES) for _ in item.responses]
                values = {
                    "rewards": rewards,
                    "log_odds": [[rng.choice(VALUES), 0.0] for _ in item.pairs],
                    "step_rewards": [[0.0, reward] for reward in rewards],
                }
                scores.append({"id": item.id, "subset": item.subset, numbers: values[numbers]})
        path = tmp_path / f"{name}.jsonl"
        path.write_text(benchmark_files.lines(scores))
        evaluate(name, name, data=data, scores=path, model_name=model, options=options)
        return tmp_path / name

    return run


def submit(folder: Path, output: Path, **options: Any) -> dict[str, bytes]:
    """Write a submission by the command; returns the files by path."""
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    result = invoke("submission", folder, "-o", output, *arguments)
    assert result.exit_code == 0, result.output
    files = {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file()
    }
    assert all(str(output / path) in result.stderr.replace("\n", "") for path in files)
    return files


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Functions of RewardBench's package, which write to `tmp_path / results`."""
    monkeypatch.chdir(tmp_path)
    names = ("calculate_scores_per_section", "save_to_hub", "process_single_model")
    names += ("sample_stats", "_compute_prompt_stats", "reroll_and_score_dataset")
    return peer_functions("rewardbench/utils.py", names, np=np, pd=pd, Dataset=Dataset)


def test_rewardbench_equals_files_of_package(
    evaluate_whole: Callable[..., Path], package: dict[str, Any], tmp_path: Path
) -> None:
    """The same steps as in the last part of `scripts/run_rm.py`, on the same rewards."""
    folder = evaluate_whole("rewardbench")
    files = submit(folder, tmp_path / "out")
    items, scores = read_lines(folder / "items.jsonl"), read_lines(folder / "scores.jsonl")
    rewards = [line["rewards"] for line in scores]
    table = Dataset.from_dict(
        {
            "text_chosen": [
                [*item["prompt"], {"role": "assistant", "content": item["responses"][0]}]
                for item in items
            ],
            "text_rejected": [
                [*item["prompt"], {"role": "assistant", "content": item["responses"][1]}]
                for item in items
            ],
            "results": [1 if chosen > rejected else 0 for chosen, rejected in rewards],
            "subset": [item["subset"] for item in items],
            "id": [int(item["id"]) for item in items],
            "scores_chosen": [chosen for chosen, _ in rewards],
            "scores_rejected": [rejected for _, rejected in rewards],
        }
    )
    head = {"model": MODEL, "model_type": "Seq. Classifier", "chat_template": "tokenizer"}
    grouped: dict[str, Any] = dict(head)
    for subset in np.unique(table["subset"]).tolist():
        results = [row["results"] for row in table.to_list() if row["subset"] == subset]
        grouped[subset] = sum(results) / len(results)
    package["save_to_hub"](grouped, MODEL, "eval-set/", local_only=True)
    package["save_to_hub"](table.to_dict() | head, MODEL, "eval-set-scores/", local_only=True)
    names = {f"eval-set/{MODEL}.json", f"eval-set-scores/{MODEL}.json"}
    assert files == {name: (tmp_path / "results" / name).read_bytes() for name in names}


def test_rewardbench_is_read_by_package(
    evaluate_whole: Callable[..., Path], package: dict[str, Any], tmp_path: Path
) -> None:
    folder = evaluate_whole("rewardbench")
    submit(folder, tmp_path / "out")
    readers = peer_functions(
        "analysis/utils.py",
        ("load_results", "load_scores"),
        pd=pd,
        np=np,
        load_dataset=load_dataset,
        Path=Path,
    )
    constants: dict[str, Any] = {}
    exec((peer_path("rewardbench") / "constants.py").read_text(encoding="utf-8"), constants)
    (row,) = readers["load_results"](tmp_path / "out", "eval-set").to_dict("records")
    summary = read_summary(folder)
    assert (row["model"], row["model_type"]) == (MODEL, "Seq. Classifier")
    sections = package["calculate_scores_per_section"](
        constants["EXAMPLE_COUNTS"], constants["SUBSET_MAPPING"], row
    )
    assert sections == pytest.approx(summary["sections"], abs=1e-12)
    assert sum(sections.values()) / 4 == pytest.approx(summary["overall"], abs=1e-12)
    rows = readers["load_scores"](tmp_path / "out", "eval-set-scores")
    assert len(rows) == summary["num_items"]
    by_subset = (rows["scores_chosen"] > rows["scores_rejected"]).groupby(rows["subset"]).mean()
    assert by_subset.to_dict() == pytest.approx(summary["subsets"])


def test_rewardbench_with_verdicts_of_a_judge(
    evaluate_whole: Callable[..., Path], tmp_path: Path
) -> None:
    folder = evaluate_whole("rewardbench", "log_odds")
    files = submit(folder, tmp_path / "out", name="other/name")
    grouped = json.loads(files["eval-set/other/name.json"])
    assert grouped.pop("model") == "other/name"
    assert grouped.pop("model_type") == "Generative RM"
    assert grouped.pop("chat_template") is None
    assert grouped == read_summary(folder)["subsets"]
    rows = json.loads(files["eval-set-scores/other/name.json"])
    assert set(rows) == {
        *("model", "model_type", "text_chosen", "text_rejected", "results", "subset", "id")
    }
    # One of both orders, the second of which is undecided.
    assert set(rows["results"]) == {0, 1, 0.5}
    for name, accuracy in grouped.items():
        pairs = zip(rows["subset"], rows["results"], strict=True)
        results = [result for subset, result in pairs if subset == name]
        assert sum(results) / len(results) == pytest.approx(accuracy)


def test_rewardbench_of_a_step_model_has_no_rewards(
    evaluate_whole: Callable[..., Path], tmp_path: Path
) -> None:
    for name, number in (("rewardbench", 23), ("rewardbench2", 6)):
        folder = evaluate_whole(name, "step_rewards")
        files = submit(folder, tmp_path / f"{name}-out")
        assert list(files) == [f"eval-set/{MODEL}.json"]
        grouped = json.loads(files[f"eval-set/{MODEL}.json"])
        assert grouped["model_type"] == "Custom Classifier"
        assert len(grouped) == 3 + number
        assert grouped.items() >= read_summary(folder)["subsets"].items()


def test_prior_sets_are_files_of_their_own(
    evaluate_whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = dict(zip(PRIOR_SETS, (2, 3, 4, 5), strict=True))
    monkeypatch.setattr("rm_core.benchmarks.rewardbench.PRIOR_SETS", counts)
    folder = evaluate_whole("rewardbench", prior_sets="on")
    files = submit(folder, tmp_path / "out")
    subsets = read_summary(folder)["subsets"]
    core = json.loads(files[f"eval-set/{MODEL}.json"])
    prior = json.loads(files[f"pref-sets/{MODEL}.json"])
    assert set(core) - {"model", "model_type", "chat_template"} == {
        name for rows in SECTIONS.values() for name in rows
    }
    assert prior.items() >= {name: subsets[name] for name in PRIOR_SETS}.items()
    rows = json.loads(files[f"pref-sets-scores/{MODEL}.json"])
    assert len(rows["scores_chosen"]) == sum(counts.values())


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning")
def test_rewardbench2_gives_scores_of_package(
    evaluate_whole: Callable[..., Path], package: dict[str, Any], tmp_path: Path
) -> None:
    """The package computes the scores of the submission again from its rewards."""
    no_spread = "limit" if "_compute_prompt_stats" in package else "left-out"
    folder = evaluate_whole("rewardbench2", no_spread=no_spread)
    files = submit(folder, tmp_path / "out")
    grouped = json.loads(files[f"eval-set/{MODEL}.json"])
    rows = json.loads(files[f"eval-set-scores/{MODEL}.json"])
    head = {name: rows.pop(name) for name in ("model", "model_type", "chat_template")}
    assert grouped.items() >= head.items()
    assert set(rows) == {"text", "scores", "results", "subset", "id", "num_correct"}
    table = Dataset.from_dict(rows)
    completions = [len(one) for one in rows["scores"]]
    unrolled = Dataset.from_dict(
        {
            "text": [str(text) for texts in rows["text"] for text in texts],
            "scores": [score for scores in rows["scores"] for score in scores],
            "id": [i for i, n in zip(rows["id"], completions, strict=True) for _ in range(n)],
        }
    )
    rolled = package["reroll_and_score_dataset"](unrolled, completions)
    assert list(rolled["results"]) == pytest.approx(rows["results"])
    for subset in set(rows["subset"]):
        chosen = table.filter(lambda row, subset=subset: row["subset"] == subset)
        if subset == "Ties":
            score = package["process_single_model"](chosen)[1]
        else:
            score = np.mean(chosen["results"])
        assert grouped[subset] == pytest.approx(score, abs=1e-12)


def test_texts_are_rendered_by_chat_template(
    evaluate_whole: Callable[..., Path], checkpoint_of: PathOf, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of("llama-v0.2"))
    folder = evaluate_whole("rewardbench2")
    plain, rendered = (
        json.loads(
            submit(folder, tmp_path / f"out-{len(options)}", **options)[
                f"eval-set-scores/{MODEL}.json"
            ]
        )
        for options in ({}, {"model": checkpoint_of("llama-v0.2")})
    )
    for messages, texts in zip(plain["text"][:50], rendered["text"][:50], strict=True):
        assert texts == [tokenizer.apply_chat_template(one, tokenize=False) for one in messages]
        assert texts[0].startswith("<bos><|start_header_id|>user")
    assert {k: v for k, v in plain.items() if k != "text"} == {
        k: v for k, v in rendered.items() if k != "text"
    }


def test_rm_bench_has_row_and_result_file(
    evaluate_whole: Callable[..., Path], tmp_path: Path
) -> None:
    folder = evaluate_whole("rm-bench")
    files = submit(folder, tmp_path / "out")
    summary = read_summary(folder)
    (path,) = files.keys() - {"row.md"}
    assert path == f"results/Seq_Classifier/{MODEL}/total_dataset_tiny-rm_0.1.json"
    rows = json.loads(files[path])
    assert len(rows) == summary["num_items"]
    scores = {
        (line["subset"], int(line["id"])): line for line in read_lines(folder / "scores.jsonl")
    }
    for row in rows:
        rewards = scores[row["domain"], row["id"]]["rewards"]
        assert row["score_chosen"] + row["score_rejected"] == rewards
        assert row["chosen"] == ["Plain.", "More words.", "**More** words."]
    cells = [cell.strip() for cell in files["row.md"].decode().splitlines()[2].split("|")[1:-1]]
    assert cells[:2] == [f"[tiny-rm_0.1](https://huggingface.co/{MODEL})", "Scalar RM"]
    values = [summary["sections"][name] for name in ("chat", "math", "code", "safety")]
    values += [summary["difficulty"][name] for name in ("easy", "normal", "hard")]
    values += [summary["overall"]] * 3
    assert cells[2:-2] == [f"{100 * value:.1f}" for value in values]


def test_rm_bench_is_read_by_code_of_its_authors(
    evaluate_whole: Callable[..., Path], tmp_path: Path
) -> None:
    names = ("compute_accuracy", "split_dataset_by_domain")
    functions = peer_functions("RM-Bench/scripts/utils.py", names, np=np)
    folder = evaluate_whole("rm-bench")
    files = submit(folder, tmp_path / "out")
    (path,) = files.keys() - {"row.md"}
    found = functions["compute_accuracy"](json.loads(files[path]))
    summary = read_summary(folder)
    levels = {f"{name}_acc": value for name, value in summary["difficulty"].items()}
    expected = summary["sections"] | levels | {"total_avg_acc": summary["overall"]}
    assert found == pytest.approx(expected)


def test_rm_bench_of_a_judge_is_a_row(evaluate_whole: Callable[..., Path], tmp_path: Path) -> None:
    files = submit(evaluate_whole("rm-bench", "log_odds"), tmp_path / "out")
    assert list(files) == ["row.md"]
    assert "| GenRM |" in files["row.md"].decode()


def test_judgebench_repeats_rows_with_both_orders(
    evaluate_whole: Callable[..., Path], tmp_path: Path
) -> None:
    folder = evaluate_whole("judgebench")
    files = submit(folder, tmp_path / "out", data=tmp_path / "judgebench-rows")
    path = (
        "outputs/dataset=judgebench,response_model=gpt-4o-2024-05-13,judge_name=reward_model,"
        "judge_model=ORG_tiny-rm_0.1.jsonl"
    )
    lines = [json.loads(line) for line in files[path].splitlines()]
    scores = {line["id"]: line["rewards"] for line in read_lines(folder / "scores.jsonl")}
    rows = {row["pair_id"]: row for row, _ in whole("judgebench")}
    for line in lines:
        (first, second), rewards = line.pop("judgments"), scores[line["pair_id"]]
        assert line.pop("judge_name") == "reward_model"
        assert line == rows[line["pair_id"]]
        for one, expected in ((first, rewards), (second, rewards[::-1])):
            assert one["judgment"] == {"judge_model": MODEL, "scores": expected}
            assert one["decision"] == ("A>B" if expected[0] > expected[1] else "B>A")
    assert len(lines) == 350


def test_judgebench_is_read_by_code_of_its_authors(
    evaluate_whole: Callable[..., Path], tmp_path: Path
) -> None:
    names = ("flip_judgment", "compute_final_metrics")
    functions = peer_functions("JudgeBench/utils/metrics.py", names)
    for orders, is_reversed in (("one", False), ("both", True)):
        folder = evaluate_whole("judgebench", orders=orders)
        files = submit(folder, tmp_path / orders, data=tmp_path / "judgebench-rows")
        (content,) = files.values()
        pairs = [json.loads(line) for line in content.splitlines()]
        score = functions["compute_final_metrics"](pairs, is_reversed)
        assert score == pytest.approx(100 * read_summary(folder)["overall"])


def test_name_of_the_catalogue_is_default(
    evaluate_whole: Callable[..., Path], tmp_path: Path
) -> None:
    folder = evaluate_whole("rm-bench", model="Skywork-Reward-V2-Qwen3-0.6B")
    files = submit(folder, tmp_path / "out")
    assert b"https://huggingface.co/Skywork/Skywork-Reward-V2-Qwen3-0.6B" in files["row.md"]


@pytest.mark.parametrize("name", BENCHMARK_NAMES)
def test_partial_evaluation_or_unknown_form_is_refused(
    name: str, evaluate: Evaluate, tmp_path: Path
) -> None:
    evaluate(name)
    with pytest.raises(EvaluationError) as raised:
        write_submission(
            tmp_path / "out", tmp_path / "new", name=MODEL, model=None, data=None, notify=print
        )
    has_form = name in ("rewardbench", "rewardbench2", "rm-bench", "judgebench")
    title = BENCHMARKS[name].title
    expected = (
        f"is a partial result of {title}, and a submission needs all items; missing: "
        if has_form
        else f"no form of submissions is known for {title}; there are forms for rewardbench, "
    )
    assert expected in raised.value.detail
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "numbers", "options", "arguments", "message"),
    [
        ("rm-bench", "rewards", {"drop": 1}, {}, "missing: subset chat: has 128 of 129 items"),
        ("rm-bench", "rewards", {"model": "tiny"}, {}, "'tiny'; a submission needs ORG/NAME"),
        ("rm-bench", "rewards", {}, {"name": "../up"}, "'../up'; a submission needs ORG/NAME"),
        ("rm-bench", "rewards", {}, {"data": "rows"}, "--data has no effect on rm-bench"),
        ("rm-bench", "rewards", {}, {"model": "demo"}, "--model has no effect on rm-bench"),
        ("judgebench", "rewards", {}, {}, "give their location with --data PATH"),
        ("judgebench", "log_odds", {}, {}, "submit the judge's implementation without results"),
        ("rewardbench", "log_odds", {"judge_orders": "both"}, {}, "variant judge_orders=both"),
    ],
)
def test_unfit_evaluation_is_refused(
    name: str,
    numbers: str,
    options: dict[str, Any],
    arguments: dict[str, str],
    message: str,
    evaluate_whole: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = evaluate_whole(name, numbers, **options)
    given = [part for key, value in arguments.items() for part in (f"--{key}", value)]
    result = invoke("submission", folder, "-o", tmp_path / "new", *given)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "new").exists()


def test_other_rows_of_judgebench_are_refused(
    evaluate_whole: Callable[..., Path], tmp_path: Path
) -> None:
    folder = evaluate_whole("judgebench")
    rows = [row for row, _ in whole("judgebench")]
    arguments = SimpleNamespace(name=None, model=None, data=str(tmp_path / "rows.jsonl"))
    for changed, message in (
        ([rows[0] | {"response_A": "Other."}, *rows[1:]], "has other texts in"),
        (rows[2:], "lacks 2 rows of the evaluation: pair-0, pair-1"),
    ):
        (tmp_path / "rows.jsonl").write_text(benchmark_files.lines(changed))
        with pytest.raises(EvaluationError, match=message):
            write_submission(folder, tmp_path / "new", notify=print, **vars(arguments))
