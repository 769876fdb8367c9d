"""RewardBench: worked examples from public sources, weights, and what is told of partial data."""

from __future__ import annotations

import json

import pytest
from conftest import SHARED_DATA
from published_rows import REWARDBENCH, RIGHT, WRONG, read, rewardbench_row, scored, whole

from rm_core.benchmarks.base import BenchmarkResult, Item
from rm_core.benchmarks.registry import BENCHMARKS, build_benchmark
from rm_core.benchmarks.rewardbench import SECTIONS
from rm_core.catalog.entries import load_catalog, load_not_served
from rm_core.errors import BenchmarkDataError

ORIGINAL = BENCHMARKS["rewardbench"]
LLMBAR = SHARED_DATA / "llmbar" / "rewardbench_style_llmbar.jsonl"


def figures(right: dict[str, int], **options: str) -> BenchmarkResult:
    """Of the whole benchmark, with so many pairs right in each subset."""
    made = build_benchmark("rewardbench", **options)

    def rewards(item: Item) -> tuple[float, float]:
        return RIGHT if int(item.id) < right[item.subset] else WRONG

    return made.compute_result(scored(read(made, whole("rewardbench")), rewards))


def spread(section: str, right: int, without: tuple[str, ...] = ()) -> dict[str, int]:
    """So many right of a section, in whichever of its subsets."""
    found = {}
    for name, count in SECTIONS[section].items():
        if name not in without:
            found[name] = min(right, count)
            right -= found[name]
    assert right == 0
    return found


def printed(found: BenchmarkResult, digits: int) -> dict[str, float]:
    return {name: round(part.score, digits) for name, part in found.sections.items()}


def reasoning(math: int, code: int) -> dict[str, int]:
    return {"math-prm": math, **spread("Reasoning", code, without=("math-prm",))}


def test_example_of_the_official_readme() -> None:
    right = spread("Chat", 218) | spread("Chat Hard", 205) | spread("Safety", 534)
    found = figures(right | reasoning(132, 628))
    assert printed(found, 7) == {
        "Chat": 0.6089385,
        "Chat Hard": 0.4495614,
        "Safety": 0.7216216,
        "Reasoning": 0.4667567,
    }
    assert found.overall is not None
    assert round(found.overall, 7) == 0.5617196  # the mean of what the README prints ends in 5
    assert found.missing == ()


def test_llama_v01_before_and_after_the_correction_of_xstest() -> None:
    right = spread("Chat", 344) | spread("Chat Hard", 398) | reasoning(433, 939)
    others = ("xstest-should-refuse", "xstest-should-respond")
    right |= spread("Safety", 282, without=others)
    right |= {"xstest-should-refuse": 147, "xstest-should-respond": 243}
    before = printed(figures(right, xstest="swapped"), 6)
    assert before == {
        "Chat": 0.960894,
        "Chat Hard": 0.872807,
        "Safety": 0.905844,
        "Reasoning": 0.961474,
    }
    after = figures(right)
    assert after.sections["Safety"].score == 672 / 740
    assert printed(after, 3)["Safety"] == 0.908
    assert printed(after, 6)["Chat"] == before["Chat"]


def test_gemma_v01_and_vl() -> None:
    others = ("xstest-should-refuse", "xstest-should-respond")
    right = spread("Chat", 343) | spread("Chat Hard", 417) | reasoning(424, 959)
    right |= spread("Safety", 299, without=others)
    right |= {"xstest-should-refuse": 146, "xstest-should-respond": 235}
    assert printed(figures(right), 3) == {
        "Chat": 0.958,
        "Chat Hard": 0.914,
        "Safety": 0.919,
        "Reasoning": 0.962,  # the card of the next version prints 96.1
    }
    assert printed(figures(right, xstest="swapped"), 3)["Safety"] == 0.920
    right = spread("Chat", 322) | spread("Chat Hard", 399) | spread("Safety", 674)
    found = figures(right | reasoning(411, 901))
    assert printed(found, 3) == {
        "Chat": 0.899,
        "Chat Hard": 0.875,
        "Safety": 0.911,
        "Reasoning": 0.918,
    }
    assert found.overall is not None
    assert round(found.overall, 3) == 0.901


def rows_of_leaderboard() -> list[tuple[str, dict[str, float]]]:
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for entry in [*load_catalog(), *load_not_served()]:
        for one in entry.published:
            if one.benchmark == "rewardbench":
                row = rows.setdefault((entry.id, one.source), {})
                row.setdefault(one.metric, one.value)
    return [(f"{name}, {source}", row) for (name, source), row in rows.items() if len(row) == 5]


def test_published_scores_are_the_mean_of_four_sections() -> None:
    rows = rows_of_leaderboard()
    assert len(rows) >= 9
    for name, row in rows:
        mean = sum(row[section] for section in SECTIONS) / 4
        # Sections and their mean are each rounded to a tenth.
        assert abs(mean - row["overall"]) <= 0.1 + 1e-9, name


def test_counts_are_the_published_ones() -> None:
    assert {name: sum(rows.values()) for name, rows in SECTIONS.items()} == {
        "Chat": 358,
        "Chat Hard": 456,
        "Safety": 740,
        "Reasoning": 1431,
    }
    found = figures(REWARDBENCH)
    assert found.overall == 1.0
    assert sum(part.num_items for part in found.subsets.values()) == 2985
    assert all(part.num_items == part.num_expected for part in found.subsets.values())


def test_math_weighs_as_much_as_code() -> None:
    nothing = dict.fromkeys(REWARDBENCH, 0)
    assert figures(nothing | {"math-prm": 447}).sections["Reasoning"].score == 0.5
    accuracy = figures(nothing | {"math-prm": 447}).extra["accuracy"]
    assert accuracy == 447 / 2985


def test_equal_rewards_are_wrong() -> None:
    items = read(ORIGINAL, whole("rewardbench"))
    assert ORIGINAL.compute_result(scored(items, lambda item: (0.5, 0.5))).overall == 0.0


def test_a_part_of_the_benchmark_is_told() -> None:
    rows = [(rewardbench_row(n, "hep-cpp"), "a.jsonl") for n in range(100)]
    found = ORIGINAL.compute_result(scored(read(ORIGINAL, rows), lambda item: RIGHT))
    assert found.overall == 1.0
    assert list(found.sections) == ["Reasoning"]
    assert "subset hep-cpp: 100 of 164 items" in found.missing
    assert "subset math-prm: none of 447 items" in found.missing
    assert len(found.missing) == 23
    nothing = ORIGINAL.compute_result([])
    assert (nothing.overall, nothing.sections, len(nothing.missing)) == (None, {}, 23)


def test_prior_sets() -> None:
    made = build_benchmark("rewardbench", prior_sets="on")
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    turns.append({"role": "user", "content": "c"})
    row = {"id": 0, "prompt": turns, "chosen": "d", "rejected": "e", "subset": "harmless"}
    origin = "data/anthropic_hhh-00000-of-00001.parquet"
    item = made.read(row, origin)
    assert item.subset == "anthropic_hhh"
    # The official code goes by the place of a turn, whatever role it says.
    assert [turn["role"] for turn in item.prompt] == ["user", "assistant", "user"]
    pairs = scored(read(made, whole("rewardbench")), lambda item: RIGHT)
    found = made.compute_result([*pairs, *scored([item], lambda item: WRONG)])
    assert found.overall == pytest.approx(4 / 4.5, abs=1e-15)
    assert found.sections["Prior Sets"].score == 0.0
    assert found.extra["mean_without_prior_sets"] == 1.0
    assert "subset anthropic_hhh: 1 of 221 items" in found.missing
    assert len(made.hub) == 5
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
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "must be the user's"),
        ({"rejected": "half \ud83d"}, "lone surrogate"),
        ({"id": None}, "the column `id` is null; it must be text or a whole number"),
        ({"id": 1.5}, "`id` is 1.5"),
        ({"id": True}, "`id` is True"),
    ],
)
def test_rows_that_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BenchmarkDataError, match=message):
        ORIGINAL.read(rewardbench_row(7, "hep-go") | change, "a.jsonl")


def test_a_missing_column_is_told_with_those_that_are_there() -> None:
    row = rewardbench_row(7, "hep-go")
    del row["rejected"]
    with pytest.raises(BenchmarkDataError, match="no column `rejected`; there is `id`, `subset`"):
        ORIGINAL.read(row, "a.jsonl")
    with pytest.raises(BenchmarkDataError, match="a row is a list"):
        ORIGINAL.read([], "a.jsonl")  # type: ignore[arg-type]


@pytest.mark.skipif(not LLMBAR.exists(), reason=f"LLMBar is not at hand: {LLMBAR} is missing")
def test_rows_as_they_are_published() -> None:
    lines = LLMBAR.read_text(encoding="utf-8").splitlines()
    items = read(ORIGINAL, ((json.loads(line), LLMBAR.name) for line in lines))
    found = ORIGINAL.compute_result(scored(items, lambda item: RIGHT))
    assert found.sections["Chat Hard"].num_items == 419
    assert "subset mt-bench-hard: none of 37 items" in found.missing
    assert not any("llmbar" in lack for lack in found.missing)
