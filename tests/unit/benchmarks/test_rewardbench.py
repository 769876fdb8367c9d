"""RewardBench: worked examples from public sources, weights, and reports of missing items."""

from __future__ import annotations

import json

import pytest
from conftest import BENCHMARK_DATA
from published_rows import REWARDBENCH, RIGHT, WRONG, read, rewardbench_row, scored, whole

from rm_core.benchmarks.base import BenchmarkResult, Item
from rm_core.benchmarks.registry import BENCHMARKS, build_benchmark
from rm_core.benchmarks.rewardbench import SECTIONS
from rm_core.catalog.entries import load_catalog
from rm_core.errors import BenchmarkDataError

ORIGINAL = BENCHMARKS["rewardbench"]
LLMBAR = BENCHMARK_DATA / "llmbar" / "rewardbench_style_llmbar.jsonl"


def compute_result(right: dict[str, int], **options: str) -> BenchmarkResult:
    """Compute the result of the complete benchmark with this many pairs right in each subset."""
    benchmark = build_benchmark("rewardbench", **options)

    def rewards(item: Item) -> tuple[float, float]:
        return RIGHT if int(item.id) < right[item.subset] else WRONG

    return benchmark.compute_result(scored(read(benchmark, whole("rewardbench")), rewards))


def spread(section: str, right: int, without: tuple[str, ...] = ()) -> dict[str, int]:
    """Distribute a number of right pairs over the subsets of a section."""
    counts = {}
    for name, count in SECTIONS[section].items():
        if name not in without:
            counts[name] = min(right, count)
            right -= counts[name]
    assert right == 0
    return counts


def round_sections(result: BenchmarkResult, digits: int) -> dict[str, float]:
    return {name: round(section.score, digits) for name, section in result.sections.items()}


def reasoning(math: int, code: int) -> dict[str, int]:
    return {"math-prm": math, **spread("Reasoning", code, without=("math-prm",))}


def test_official_readme_example_is_reproduced() -> None:
    right = spread("Chat", 218) | spread("Chat Hard", 205) | spread("Safety", 534)
    result = compute_result(right | reasoning(132, 628))
    assert round_sections(result, 7) == {
        "Chat": 0.6089385,
        "Chat Hard": 0.4495614,
        "Safety": 0.7216216,
        "Reasoning": 0.4667567,
    }
    assert result.overall is not None
    assert round(result.overall, 7) == 0.5617196  # the mean of the README's scores ends in 5
    assert result.missing == ()


def test_llama_v01_scores_with_swapped_and_fixed_xstest() -> None:
    right = spread("Chat", 344) | spread("Chat Hard", 398) | reasoning(433, 939)
    others = ("xstest-should-refuse", "xstest-should-respond")
    right |= spread("Safety", 282, without=others)
    right |= {"xstest-should-refuse": 147, "xstest-should-respond": 243}
    before = round_sections(compute_result(right, xstest="swapped"), 6)
    assert before == {
        "Chat": 0.960894,
        "Chat Hard": 0.872807,
        "Safety": 0.905844,
        "Reasoning": 0.961474,
    }
    after = compute_result(right)
    assert after.sections["Safety"].score == 672 / 740
    assert round_sections(after, 3)["Safety"] == 0.908
    assert round_sections(after, 6)["Chat"] == before["Chat"]


def test_gemma_v01_and_vl_scores_are_reproduced() -> None:
    others = ("xstest-should-refuse", "xstest-should-respond")
    right = spread("Chat", 343) | spread("Chat Hard", 417) | reasoning(424, 959)
    right |= spread("Safety", 299, without=others)
    right |= {"xstest-should-refuse": 146, "xstest-should-respond": 235}
    assert round_sections(compute_result(right), 3) == {
        "Chat": 0.958,
        "Chat Hard": 0.914,
        "Safety": 0.919,
        "Reasoning": 0.962,  # the card of the next version prints 96.1
    }
    assert round_sections(compute_result(right, xstest="swapped"), 3)["Safety"] == 0.920
    right = spread("Chat", 322) | spread("Chat Hard", 399) | spread("Safety", 674)
    result = compute_result(right | reasoning(411, 901))
    assert round_sections(result, 3) == {
        "Chat": 0.899,
        "Chat Hard": 0.875,
        "Safety": 0.911,
        "Reasoning": 0.918,
    }
    assert result.overall is not None
    assert round(result.overall, 3) == 0.901


def list_leaderboard_rows() -> list[tuple[str, dict[str, float]]]:
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for entry in load_catalog():
        for one in entry.published:
            if one.benchmark == "rewardbench":
                row = rows.setdefault((entry.id, one.source), {})
                row.setdefault(one.metric, one.value)
    return [(f"{name}, {source}", row) for (name, source), row in rows.items() if len(row) == 5]


def test_published_scores_are_the_mean_of_four_sections() -> None:
    rows = list_leaderboard_rows()
    assert len(rows) >= 9
    for name, row in rows:
        mean = sum(row[section] for section in SECTIONS) / 4
        # The sections and their mean are each rounded to a tenth.
        assert abs(mean - row["overall"]) <= 0.1 + 1e-9, name


def test_counts_equal_published_counts() -> None:
    assert {name: sum(rows.values()) for name, rows in SECTIONS.items()} == {
        "Chat": 358,
        "Chat Hard": 456,
        "Safety": 740,
        "Reasoning": 1431,
    }
    result = compute_result(REWARDBENCH)
    assert result.overall == 1.0
    assert sum(section.num_items for section in result.subsets.values()) == 2985
    assert all(section.num_items == section.num_expected for section in result.subsets.values())


def test_math_weighs_as_much_as_code() -> None:
    nothing = dict.fromkeys(REWARDBENCH, 0)
    assert compute_result(nothing | {"math-prm": 447}).sections["Reasoning"].score == 0.5
    accuracy = compute_result(nothing | {"math-prm": 447}).extra["accuracy"]
    assert accuracy == 447 / 2985


def test_equal_rewards_are_wrong() -> None:
    items = read(ORIGINAL, whole("rewardbench"))
    assert ORIGINAL.compute_result(scored(items, lambda item: (0.5, 0.5))).overall == 0.0


def test_missing_items_are_reported() -> None:
    rows = [(rewardbench_row(n, "hep-cpp"), "a.jsonl") for n in range(100)]
    result = ORIGINAL.compute_result(scored(read(ORIGINAL, rows), lambda item: RIGHT))
    assert result.overall == 1.0
    assert list(result.sections) == ["Reasoning"]
    assert "subset hep-cpp: has 100 of 164 items" in result.missing
    assert "subset math-prm: has none of 447 items" in result.missing
    assert len(result.missing) == 23
    nothing = ORIGINAL.compute_result([])
    assert (nothing.overall, nothing.sections, len(nothing.missing)) == (None, {}, 23)


def test_prior_sets_add_section_of_half_weight() -> None:
    benchmark = build_benchmark("rewardbench", prior_sets="on")
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    turns.append({"role": "user", "content": "c"})
    row = {"id": 0, "prompt": turns, "chosen": "d", "rejected": "e", "subset": "harmless"}
    origin = "data/anthropic_hhh-00000-of-00001.parquet"
    item = benchmark.read(row, origin)
    assert item.subset == "anthropic_hhh"
    # The official code assigns roles by the position of a turn and ignores its role.
    assert [turn["role"] for turn in item.prompt] == ["user", "assistant", "user"]
    pairs = scored(read(benchmark, whole("rewardbench")), lambda item: RIGHT)
    result = benchmark.compute_result([*pairs, *scored([item], lambda item: WRONG)])
    assert result.overall == pytest.approx(4 / 4.5, abs=1e-15)
    assert result.sections["Prior Sets"].score == 0.0
    assert result.extra["mean_without_prior_sets"] == 1.0
    assert "subset anthropic_hhh: has 1 of 221 items" in result.missing
    assert len(benchmark.hub) == 5
    with pytest.raises(BenchmarkDataError, match="prior_sets"):
        ORIGINAL.read(row, origin)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subset": "chat"}, r"a\.jsonl, id '7': the column `subset` is 'chat'; it must be alpaca"),
        ({"chosen": None}, "the column `chosen` is null; it must be text"),
        ({"chosen": ["a"]}, "the column `chosen` is a list; it must be text"),
        ({"prompt": 3}, "the column `prompt` is 3; it must be a list"),
        ({"prompt": []}, "the column `prompt` is an empty list"),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "its role must be 'user'"),
        ({"rejected": "half \ud83d"}, "lone surrogate"),
        ({"id": None}, "the column `id` is null; it must be text or a whole number"),
        ({"id": 1.5}, "`id` is 1.5"),
        ({"id": True}, "`id` is True"),
    ],
)
def test_invalid_rows_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BenchmarkDataError, match=message):
        ORIGINAL.read(rewardbench_row(7, "hep-go") | change, "a.jsonl")


def test_missing_column_error_lists_columns() -> None:
    row = rewardbench_row(7, "hep-go")
    del row["rejected"]
    message = "column `rejected` is missing; the columns are `id`, `subset`"
    with pytest.raises(BenchmarkDataError, match=message):
        ORIGINAL.read(row, "a.jsonl")
    with pytest.raises(BenchmarkDataError, match="a row is a list"):
        ORIGINAL.read([], "a.jsonl")  # type: ignore[arg-type]


@pytest.mark.skipif(not LLMBAR.exists(), reason=f"the LLMBar data is missing: {LLMBAR}")
def test_published_rows_are_read() -> None:
    lines = LLMBAR.read_text(encoding="utf-8").splitlines()
    items = read(ORIGINAL, ((json.loads(line), LLMBAR.name) for line in lines))
    result = ORIGINAL.compute_result(scored(items, lambda item: RIGHT))
    assert result.sections["Chat Hard"].num_items == 419
    assert "subset mt-bench-hard: has none of 37 items" in result.missing
    assert not any("llmbar" in lack for lack in result.missing)
