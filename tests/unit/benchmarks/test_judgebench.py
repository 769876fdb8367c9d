"""JudgeBench: the authors' raw rewards, ties and orders, and the option `pairs`."""

from __future__ import annotations

import csv
import json

import pytest
from conftest import BENCHMARK_DATA
from published_rows import judgebench_row, read, scored, whole

from rm_core.benchmarks.base import Item, ScoredItem
from rm_core.benchmarks.registry import BENCHMARKS, build_benchmark
from rm_core.errors import BenchmarkDataError

ORIGINAL = BENCHMARKS["judgebench"]
DATA = BENCHMARK_DATA / "judgebench"
PAIRS = DATA / "dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl"
SCORES = DATA / "skywork_v01_scores_gpt4o_pairs.csv"


@pytest.mark.skipif(not DATA.exists(), reason=f"the JudgeBench data is missing: {DATA}")
@pytest.mark.parametrize("orders", ["one", "both"])
@pytest.mark.parametrize(
    ("model", "sections", "flat", "mean"),
    [
        ("Skywork_Skywork-Reward-Gemma-2-27B", [59.74, 66.33, 83.93, 50.00], 64.29, 65.00),
        ("Skywork_Skywork-Reward-Llama-3.1-8B", [59.09, 64.29, 76.79, 50.00], 62.29, 62.54),
    ],
)
def test_raw_rewards_of_authors_give_published_scores(
    model: str, sections: list[float], flat: float, mean: float, orders: str
) -> None:
    benchmark = build_benchmark("judgebench", orders=orders)
    with SCORES.open(encoding="utf-8", newline="") as file:
        rewards = {
            row["pair_id"]: (float(row[f"{model}:A"]), float(row[f"{model}:B"]))
            for row in csv.DictReader(file)
        }
    lines = PAIRS.read_text(encoding="utf-8").splitlines()
    items = read(benchmark, ((json.loads(line), PAIRS.name) for line in lines))
    result = benchmark.compute_result(scored(items, lambda item: rewards[item.id]))
    assert list(result.sections) == ["knowledge", "reasoning", "math", "coding"]
    assert [round(100 * section.score, 2) for section in result.sections.values()] == sections
    assert result.overall is not None
    assert round(100 * result.overall, 2) == flat
    assert round(100 * result.extra["mean_of_sections"], 2) == mean
    assert result.missing == ()


@pytest.mark.parametrize(
    ("model", "right", "flat", "mean"),
    [
        ("Gemma-2-27B", (92, 65, 47, 21), 64.29, 65.00),
        ("Llama-3.1-8B", (91, 63, 43, 21), 62.29, 62.54),
        ("internlm2-20b", (96, 68, 37, 21), 63.43, 61.95),
        ("internlm2-7b", (87, 60, 40, 21), 59.43, 59.79),
        ("GRM-Gemma-2B", (97, 52, 36, 23), 59.43, 58.77),
    ],
)
def test_published_counts_give_published_scores(
    model: str, right: tuple[int, ...], flat: float, mean: float
) -> None:
    remaining = dict(zip(("knowledge", "reasoning", "math", "coding"), right, strict=True))
    items = []
    for item in read(ORIGINAL, whole("judgebench")):
        remaining[item.metadata["category"]] -= 1
        better = item.preferences[0].better
        is_right = remaining[item.metadata["category"]] >= 0
        items.append(ScoredItem(item, (1.0, 0.0) if (better == 0) == is_right else (0.0, 1.0)))
    result = ORIGINAL.compute_result(items)
    assert [section.num_correct for section in result.sections.values()] == list(right), model
    assert result.overall is not None
    assert round(100 * result.overall, 2) == flat
    assert round(100 * result.extra["mean_of_sections"], 2) == mean


@pytest.mark.parametrize(
    ("orders", "label", "right"),
    [("one", "A>B", 0.0), ("one", "B>A", 1.0), ("both", "A>B", 0.0), ("both", "B>A", 0.0)],
)
def test_equal_rewards_mean_b_in_one_order_and_a_draw_in_both(
    orders: str, label: str, right: float
) -> None:
    benchmark = build_benchmark("judgebench", orders=orders)
    item = benchmark.read(judgebench_row(1, "mmlu-pro-law", label), "gpt.jsonl")
    assert benchmark.compute_result(scored([item], lambda item: (0.5, 0.5))).overall == right


def test_pairs_option_refuses_answers_of_other_models() -> None:
    claude = judgebench_row(1, "livecodebench")
    claude["response_model"] = "claude-3-5-sonnet-20240620"
    with pytest.raises(BenchmarkDataError, match="answers are by 'claude-3-5-sonnet-20240620'"):
        ORIGINAL.read(claude, "claude.jsonl")
    benchmark = build_benchmark("judgebench", pairs="claude")
    assert benchmark.hub[0].split == "claude"
    result = benchmark.compute_result(scored([benchmark.read(claude, "")], lambda item: (1.0, 0.0)))
    assert result.sections["coding"].num_expected is None
    assert "has 1 of 270 items" in result.missing
    assert "section math: no items" in result.missing
    with pytest.raises(BenchmarkDataError, match="the option `pairs` is claude"):
        benchmark.read(judgebench_row(1, "livecodebench"), "gpt.jsonl")
    unnamed = judgebench_row(1, "livecodebench")
    del unnamed["response_model"]
    assert ORIGINAL.read(unnamed, "").id == "pair-1"


def test_missing_items_are_reported() -> None:
    def rewards(item: Item) -> tuple[float, float]:
        return 1.0, 0.0

    items = read(ORIGINAL, whole("judgebench")[:200])
    result = ORIGINAL.compute_result(scored(items, rewards))
    assert "section reasoning: has 46 of 98 items" in result.missing
    assert "section coding: has none of 42 items" in result.missing
    assert ORIGINAL.compute_result([]).overall is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "gsm8k"}, "`source` is 'gsm8k'; it must start with mmlu-pro"),
        ({"label": "A"}, "the column `label` is 'A'; it must be A>B, B>A"),
        ({"response_B": None}, "the column `response_B` is null"),
    ],
)
def test_invalid_rows_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BenchmarkDataError, match=message):
        ORIGINAL.read(judgebench_row(1, "mmlu-pro-law") | change, "gpt.jsonl")
