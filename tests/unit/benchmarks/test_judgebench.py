"""JudgeBench: the authors' own raw rewards, ties and orders, and whose answers."""

from __future__ import annotations

import csv
import json

import pytest
from conftest import SHARED_DATA
from published_rows import judgebench_row, read, scored, whole

from rm_core.benchmarks.base import Item, ScoredItem
from rm_core.benchmarks.registry import BENCHMARKS, build_benchmark
from rm_core.errors import BenchmarkDataError

ORIGINAL = BENCHMARKS["judgebench"]
DATA = SHARED_DATA / "judgebench"
PAIRS = DATA / "dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl"
SCORES = DATA / "skywork_v01_scores_gpt4o_pairs.csv"


@pytest.mark.skipif(not DATA.exists(), reason=f"JudgeBench is not at hand: {DATA} is missing")
@pytest.mark.parametrize("orders", ["one", "both"])
@pytest.mark.parametrize(
    ("model", "sections", "flat", "mean"),
    [
        ("Skywork_Skywork-Reward-Gemma-2-27B", [59.74, 66.33, 83.93, 50.00], 64.29, 65.00),
        ("Skywork_Skywork-Reward-Llama-3.1-8B", [59.09, 64.29, 76.79, 50.00], 62.29, 62.54),
    ],
)
def test_the_raw_rewards_of_the_authors(
    model: str, sections: list[float], flat: float, mean: float, orders: str
) -> None:
    made = build_benchmark("judgebench", orders=orders)
    with SCORES.open(encoding="utf-8", newline="") as file:
        rewards = {
            row["pair_id"]: (float(row[f"{model}:A"]), float(row[f"{model}:B"]))
            for row in csv.DictReader(file)
        }
    lines = PAIRS.read_text(encoding="utf-8").splitlines()
    items = read(made, ((json.loads(line), PAIRS.name) for line in lines))
    found = made.compute_result(scored(items, lambda item: rewards[item.id]))
    assert list(found.sections) == ["knowledge", "reasoning", "math", "coding"]
    assert [round(100 * part.score, 2) for part in found.sections.values()] == sections
    assert found.overall is not None
    assert round(100 * found.overall, 2) == flat
    assert round(100 * found.extra["mean_of_sections"], 2) == mean
    assert found.missing == ()


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
def test_published_counts(model: str, right: tuple[int, ...], flat: float, mean: float) -> None:
    left = dict(zip(("knowledge", "reasoning", "math", "coding"), right, strict=True))
    items = []
    for item in read(ORIGINAL, whole("judgebench")):
        left[item.metadata["category"]] -= 1
        better = item.preferences[0].better
        is_right = left[item.metadata["category"]] >= 0
        items.append(ScoredItem(item, (1.0, 0.0) if (better == 0) == is_right else (0.0, 1.0)))
    found = ORIGINAL.compute_result(items)
    assert [part.num_correct for part in found.sections.values()] == list(right), model
    assert found.overall is not None
    assert round(100 * found.overall, 2) == flat
    assert round(100 * found.extra["mean_of_sections"], 2) == mean


@pytest.mark.parametrize(
    ("orders", "label", "right"),
    [("one", "A>B", 0.0), ("one", "B>A", 1.0), ("both", "A>B", 0.0), ("both", "B>A", 0.0)],
)
def test_equal_rewards_mean_b_in_one_order_and_a_draw_in_both(
    orders: str, label: str, right: float
) -> None:
    made = build_benchmark("judgebench", orders=orders)
    item = made.read(judgebench_row(1, "mmlu-pro-law", label), "gpt.jsonl")
    assert made.compute_result(scored([item], lambda item: (0.5, 0.5))).overall == right


def test_whose_answers_are_judged() -> None:
    claude = judgebench_row(1, "livecodebench")
    claude["response_model"] = "claude-3-5-sonnet-20240620"
    with pytest.raises(BenchmarkDataError, match="answers by 'claude-3-5-sonnet-20240620'"):
        ORIGINAL.read(claude, "claude.jsonl")
    made = build_benchmark("judgebench", pairs="claude")
    assert made.hub[0].split == "claude"
    found = made.compute_result(scored([made.read(claude, "")], lambda item: (1.0, 0.0)))
    assert found.sections["coding"].num_expected is None
    assert "1 of 270 items" in found.missing
    assert "section math: no items" in found.missing
    with pytest.raises(BenchmarkDataError, match="the option `pairs` is claude"):
        made.read(judgebench_row(1, "livecodebench"), "gpt.jsonl")
    unnamed = judgebench_row(1, "livecodebench")
    del unnamed["response_model"]
    assert ORIGINAL.read(unnamed, "").id == "pair-1"


def test_half_of_it_is_told() -> None:
    def rewards(item: Item) -> tuple[float, float]:
        return 1.0, 0.0

    items = read(ORIGINAL, whole("judgebench")[:200])
    found = ORIGINAL.compute_result(scored(items, rewards))
    assert "section reasoning: 46 of 98 items" in found.missing
    assert "section coding: none of 42 items" in found.missing
    assert ORIGINAL.compute_result([]).overall is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "gsm8k"}, "`source` is 'gsm8k'; it must start with mmlu-pro"),
        ({"label": "A"}, "the column `label` is 'A'; it must be A>B, B>A"),
        ({"response_B": None}, "the column `response_B` is null"),
    ],
)
def test_rows_that_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BenchmarkDataError, match=message):
        ORIGINAL.read(judgebench_row(1, "mmlu-pro-law") | change, "gpt.jsonl")
