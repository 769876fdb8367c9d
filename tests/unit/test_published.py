"""Published results of the catalog, against tables copied by hand and against each other."""

from __future__ import annotations

import pytest

from rm_core.benchmarks import prmbench
from rm_core.benchmarks.vl_rewardbench import GROUPS
from rm_core.catalog.entries import (
    CatalogEntry,
    find_entry,
    load_catalog,
    load_compared,
)

V2 = "Skywork/Skywork-Reward-V2-"
LLAMA_V01 = "Skywork/Skywork-Reward-Llama-3.1-8B"
GEMMA_V01 = "Skywork/Skywork-Reward-Gemma-2-27B"
PRM = "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-"
CRITIC = "Skywork/Skywork-Critic-Llama-3.1-"
VL = "Skywork/Skywork-VL-Reward-7B"
SIZES = ("1.5B", "7B")
SEVEN = [
    "rewardbench",
    "rewardbench2",
    "ppe-preference",
    "ppe-correctness",
    "rmb",
    "rm-bench",
    "judgebench",
    "average-of-seven",
]


def entry(name: str) -> CatalogEntry:
    found = find_entry(name)
    assert found is not None
    return found


def results(name: str, benchmark: str, source: str) -> dict[str, float]:
    rows = [p for p in entry(name).published if (p.benchmark, p.source) == (benchmark, source)]
    assert len({p.metric for p in rows}) == len(rows)
    return {p.metric: p.value for p in rows}


def test_published_has_both_rewardbench_runs_of_v02():
    sections = ["overall", "Chat", "Chat Hard", "Safety", "Reasoning"]
    card = results(GEMMA_V01 + "-v0.2", "rewardbench", "reward-v02-card")
    readme = results(GEMMA_V01 + "-v0.2", "rewardbench", "reward-readme-2024-10")
    assert [card[s] for s in sections] == [94.3, 96.1, 89.9, 93.0, 98.1]
    assert [readme[s] for s in sections] == [94.4, 95.8, 91.9, 92.6, 97.3]
    card = results(LLAMA_V01 + "-v0.2", "rewardbench", "reward-v02-card")
    readme = results(LLAMA_V01 + "-v0.2", "rewardbench", "reward-readme-2024-10")
    assert [card[s] for s in sections] == [93.1, 94.7, 88.4, 92.7, 96.7]
    assert [readme[s] for s in sections] == [93.2, 94.7, 88.8, 92.6, 96.7]
    for name in (LLAMA_V01 + "-v0.2", GEMMA_V01 + "-v0.2"):
        assert any("Two RewardBench runs" in str(i.value) for i in entry(name).known_issues)


def test_published_safety_before_and_after_the_xstest_fix():
    assert results(LLAMA_V01, "rewardbench", "reward-v02-card")["Safety"] == 90.8
    assert results(LLAMA_V01, "rewardbench", "reward-readme-2024-09") == {"Safety": 90.6}
    assert results(GEMMA_V01, "rewardbench", "reward-v02-card")["Safety"] == 91.9
    assert results(GEMMA_V01, "rewardbench", "reward-readme-2024-09") == {"Safety": 92.0}
    issue = results(LLAMA_V01, "rewardbench", "reward-bench-issue-169")
    assert issue["Chat"] == pytest.approx(344 / 358)
    assert issue["Chat Hard"] == pytest.approx(398 / 456)
    # Swapped weights: 250 prompts that should be refused, 154 that should not.
    swapped = (147 / 154 * 250 + 243 / 250 * 154 + 282) / 740
    assert issue["Safety"] == pytest.approx(swapped, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (LLAMA_V01 + "-v0.2", [93.1, 71.8, 62.2, 62.5, 66.6, 72.1, 62.9, 70.2]),
        (GEMMA_V01 + "-v0.2", [94.3, 75.3, 63.6, 61.9, 69.4, 70.0, 66.5, 71.6]),
        (V2 + "Qwen3-0.6B", [85.2, 61.3, 65.3, 68.3, 74.5, 74.4, 67.6, 70.9]),
        (V2 + "Qwen3-1.7B", [90.3, 68.3, 67.6, 70.5, 78.1, 78.7, 72.9, 75.2]),
        (V2 + "Qwen3-4B", [93.4, 75.5, 69.5, 74.7, 80.6, 81.6, 69.3, 77.8]),
        (V2 + "Qwen3-8B", [93.7, 78.2, 70.6, 75.1, 81.2, 82.6, 73.4, 79.3]),
        (V2 + "Llama-3.2-1B", [89.9, 64.3, 66.6, 67.4, 76.7, 76.4, 65.0, 72.3]),
        (V2 + "Llama-3.2-3B", [93.0, 74.7, 69.1, 72.1, 80.5, 81.1, 69.2, 77.1]),
        (V2 + "Llama-3.1-8B", [96.4, 84.1, 77.3, 83.4, 86.4, 92.8, 80.0, 85.8]),
        (V2 + "Llama-3.1-8B-40M", [97.8, 86.5, 79.8, 87.2, 89.3, 96.0, 83.4, 88.6]),
    ],
)
def test_published_results_of_seven_benchmarks(name: str, values: list[float]):
    rows = [p for p in entry(name).published if p.source == "reward-v2-readme"]
    assert [p.benchmark for p in rows] == SEVEN
    assert [p.value for p in rows] == values
    assert {(p.metric, p.unit) for p in rows} == {("overall", "percent")}


def test_published_results_of_other_tables():
    assert results(LLAMA_V01, "rewardbench2", "rewardbench2-paper") == {
        "overall": 73.1,
        "Factuality": 69.9,
        "Precise IF": 42.5,
        "Math": 62.8,
        "Safety": 93.3,
        "Focus": 96.2,
        "Ties": 74.1,
    }
    small = results(V2 + "Qwen3-0.6B", "rewardbench2", "reward-bench-issue-253")
    assert (small["Precise IF"], small["Ties"]) == (40.0, 34.0)
    partial = results(V2 + "Qwen3-1.7B", "rewardbench2", "reward-bench-issue-253")
    assert partial == {"overall": 68.3, "Factuality": 65.8}
    assert results(V2 + "Qwen3-4B", "judgebench", "reward-v2-paper") == {
        "knowledge": 66.9,
        "reasoning": 64.3,
        "math": 80.4,
        "coding": 66.7,
        "overall": 69.5,
    }
    board = results(LLAMA_V01 + "-v0.2", "rm-bench", "rm-bench-board")
    assert list(board.values()) == [89.3, 75.8, 52.6, 72.6, 69.3, 62.1, 53.4, 96.0]
    assert results(V2 + "Llama-3.2-1B", "rm-bench", "rm-bench-board")["overall"] == 76.3
    table_3 = results(V2 + "Llama-3.1-8B", "rmb", "reward-v2-paper")
    assert list(table_3.values()) == [82.3, 82.8, 82.6]
    assert results(V2 + "Llama-3.1-8B", "average-of-seven", "reward-v2-paper") == {"overall": 85.7}
    rmb = [p for p in entry(GEMMA_V01).published if p.benchmark == "rmb"]
    assert {p.unit for p in rmb} == {"fraction"}
    assert [p.value for p in rmb] == [0.472, 0.653, 0.561, 0.721, 0.602]


def test_published_results_of_step_models():
    small, large = (results(PRM + size, "processbench", "processbench-paper") for size in SIZES)
    assert list(small.values()) == [
        *(59.0, 48.0, 19.3, 19.2, 36.4),
        *(50.2, 71.5, 37.9, 65.3, 15.4, 26.0, 13.6, 32.8),
    ]
    assert list(large.values()) == [
        *(70.8, 53.6, 22.9, 21.0, 42.1),
        *(61.8, 82.9, 43.8, 69.2, 17.9, 31.9, 14.0, 41.9),
    ]
    for size, overall, solutions, older in (("1.5B", 61.1, 91.1, 31.7), ("7B", 65.1, 93.2, 36.2)):
        newer = results(PRM + size, "prmbench", "prmbench-notebooks")
        assert (newer["overall"], newer["multi_solutions"], len(newer)) == (overall, solutions, 13)
        assert results(PRM + size, "prmbench", "prmbench-paper")["overall"] == older
    best = results(PRM + "7B", "best-of-8", "prm-lessons-paper")
    averages = [best[f"{name}/average"] for name in ("last", "product", "min")]
    assert averages == [65.6, 64.8, 64.6]
    assert best["product/average, 72B"] == 69.2
    assert results(PRM + "1.5B", "best-of-64", "prm-lessons-paper")["average"] == 52.1


@pytest.mark.parametrize("source", ["prmbench-notebooks", "prmbench-paper"])
@pytest.mark.parametrize("size", ["1.5B", "7B"])
def test_categories_of_prmbench_are_means_of_their_classes(size: str, source: str):
    row = results(PRM + size, "prmbench", source)
    for category, classes in prmbench.CATEGORIES.items():
        mean = sum(row[name] for name in classes) / len(classes)
        assert row[category] == pytest.approx(mean, abs=0.06 if size == "7B" else 0.11)


@pytest.mark.parametrize("size", ["1.5B", "7B"])
@pytest.mark.parametrize("source", ["processbench-paper", "processbench-paper-thresholds"])
def test_f1_of_processbench_is_that_of_its_accuracies(size: str, source: str):
    row = results(PRM + size, "processbench", source)
    for name in ("GSM8K", "MATH", "OlympiadBench", "Omni-MATH"):
        error, correct = row[f"{name}/error"], row[f"{name}/correct"]
        assert row[name] == pytest.approx(2 * error * correct / (error + correct), abs=0.1)


def test_published_results_of_judges():
    for size, sections in (
        ("8B", [88.96, 93.58, 81.36, 91.08, 89.80]),
        ("70B", [93.31, 96.65, 87.94, 93.11, 95.54]),
    ):
        row = results(CRITIC + size, "rewardbench", "reward-bench-results")
        assert list(row.values())[:5] == sections
        assert len(row) == 5 + 23
    assert row["llmbar-adver-neighbor"] == pytest.approx(115 / 134)
    assert results(CRITIC + "70B", "rm-bench", "rm-r1-paper") == {"overall": 71.9}


@pytest.mark.parametrize("name", [entry.id for entry in load_catalog()])
def test_published_overall_is_the_mean_of_its_sections(name: str):
    """Catches typos in a row. 0.15 allows for rounded section results."""
    tables = {(p.benchmark, p.source, p.unit) for p in entry(name).published}
    sections_of = {
        "rewardbench": ["Chat", "Chat Hard", "Safety", "Reasoning"],
        "rewardbench2": ["Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties"],
        "rm-bench": ["easy", "normal", "hard"],
        "judgebench": ["knowledge", "reasoning", "math", "coding"],
        "processbench": ["GSM8K", "MATH", "OlympiadBench", "Omni-MATH"],
    }
    checked = 0
    for benchmark, source, _ in tables:
        row = results(name, benchmark, source)
        names = sections_of.get(benchmark, [])
        if "overall" in row and names and all(section in row for section in names):
            mean = sum(row[section] for section in names) / len(names)
            assert row["overall"] == pytest.approx(mean, abs=0.15), (benchmark, source)
            checked += 1
    has_two = entry(name).kind == "classifier" and entry(name).series != "vl"
    assert checked >= (2 if has_two else 1)


def test_published_results_of_vl_rewardbench():
    models = (*load_catalog(), *load_compared())
    rows = [(model.id, p) for model in models for p in model.published]
    by_model: dict[tuple[str, str], list[float]] = {}
    for name, result in rows:
        if result.benchmark == "vl-rewardbench":
            by_model.setdefault((name, result.source), []).append(result.value)
            assert result.unit == "percent"
    assert by_model == {
        (VL, "vl-card"): [66.0, 80.0, 61.0, 73.1, 69.0],
        (VL, "vl-rewardbench-board"): [65.6, 80.2, 61.3, 73.3],
        ("IXC-2.5-Reward-7B", "vl-card"): [80.3, 65.3, 60.4, 66.3, 68.6],
        ("Gemini-2.0-flash", "vl-card"): [68.8],
        ("GPT-4o", "vl-card"): [65.8],
        ("Qwen/Qwen2.5-VL-7B-Instruct", "vl-card"): [48.0],
    }
    counts = [sum(sources.values()) for sources in GROUPS.values()]
    for (name, _), values in by_model.items():
        if len(values) > 1:
            groups, overall = values[:3], values[3]
            total = sum(count * value for count, value in zip(counts, groups, strict=True))
            assert overall == pytest.approx(total / sum(counts), abs=0.06), name
        if len(values) == 5:
            assert values[4] == pytest.approx(sum(groups) / 3, abs=0.07), name
    assert all(p.note for other in load_compared() for p in other.published)
