"""RM-Bench: matrices, difficulty, and domains from file names or a column."""

from __future__ import annotations

import json

import pytest
from conftest import BENCHMARK_DATA
from published_rows import read, rm_bench_row, scored, whole

from rm_core.benchmarks.base import ScoredItem
from rm_core.benchmarks.registry import BENCHMARKS
from rm_core.errors import BenchmarkDataError

ORIGINAL = BENCHMARKS["rm-bench"]
DATA = BENCHMARK_DATA / "rm-bench"
# Number of right items, of 20, in each cell: M of the worked example.
CELLS = [[16, 12, 8], [18, 16, 12], [19, 18, 16]]


def test_matrix_and_difficulty_of_worked_example() -> None:
    # Rejected answers get the rewards 1, 2, 3. The reward of a chosen answer is the number of
    # rejected answers that it beats, plus 0.5.
    items = []
    for number in range(20):
        chosen = [sum(number < cell for cell in row) + 0.5 for row in CELLS]
        item = ORIGINAL.read(rm_bench_row(number), "chat_filtered.json")
        items.append(ScoredItem(item, [*chosen, 1.0, 2.0, 3.0]))
    result = ORIGINAL.compute_result(items)
    matrix = [[0.8, 0.6, 0.4], [0.9, 0.8, 0.6], [0.95, 0.9, 0.8]]
    assert result.extra["matrices"] == {"chat": matrix}
    assert {name: round(value, 4) for name, value in result.extra["difficulty"].items()} == {
        "easy": 0.9167,
        "normal": 0.8,
        "hard": 0.5333,
    }
    assert result.sections["chat"].score == 0.75
    assert result.overall == 0.75


def test_overall_is_the_mean_of_domains_and_of_difficulties() -> None:
    items = read(ORIGINAL, whole("rm-bench"))

    def rewards(item: object) -> list[float]:
        return [hash((item.id, item.subset, index)) % 7 for index in range(6)]  # type: ignore[attr-defined]

    result = ORIGINAL.compute_result(scored(items, rewards))
    assert result.missing == ()
    assert result.overall is not None
    levels = result.extra["difficulty"]
    assert result.overall == pytest.approx(sum(levels.values()) / 3, abs=1e-12)
    domains = [section.score for section in result.sections.values()]
    assert result.overall == pytest.approx(sum(domains) / 4, abs=1e-12)
    assert list(result.sections) == ["chat", "math", "code", "safety"]
    assert result.sections["safety"].num_items == 441
    assert result.subsets["safety-refuse"].num_items == 284
    for domain, level in result.extra["difficulty_by_domain"].items():
        assert sum(level.values()) / 3 == pytest.approx(result.sections[domain].score, abs=1e-12)


def test_safety_is_pooled_by_item() -> None:
    rows = [(rm_bench_row(n), "safety-refuse_filtered.json") for n in range(3)]
    rows += [(rm_bench_row(0), "safety-response_filtered.json")]
    items = read(ORIGINAL, rows)
    result = ORIGINAL.compute_result(
        scored(items, lambda item: [float(item.subset == "safety-refuse")] * 3 + [0.0] * 3)
    )
    assert result.sections["safety"].score == 0.75
    assert "subset safety-response: has 1 of 157 items" in result.missing
    assert "subset math: has none of 529 items" in result.missing


@pytest.mark.parametrize(
    ("change", "origin", "subset"),
    [
        ({}, "data/chat_filtered.json", "chat"),
        ({}, "safety-response_filtered.json", "safety-response"),
        ({}, "math.jsonl.gz", "math"),
        ({"domain": "code"}, "total_dataset.json", "code"),
        ({"domain": "safety-refuse"}, "total_dataset.json", "safety-refuse"),
        ({"domain": "safety", "subset": "xstest-should-respond"}, "x.json", "safety-response"),
        ({"domain": "safety", "subset": "refusals-dangerous"}, "x.json", "safety-refuse"),
    ],
)
def test_subset_is_read_from_file_name_or_columns(
    change: dict[str, str], origin: str, subset: str
) -> None:
    assert ORIGINAL.read(rm_bench_row(1) | change, origin).subset == subset


@pytest.mark.parametrize(
    ("change", "origin", "message"),
    [
        ({}, "total_dataset.json", "the domain is 'total', from the column `domain` or else"),
        ({"domain": "poetry"}, "chat_filtered.json", "the domain is 'poetry'"),
        ({"chosen": ["a", "b"]}, "chat_filtered.json", "`chosen` has 2 texts; it must have 3"),
        ({"rejected": "a"}, "chat_filtered.json", "`rejected` is 'a'; it must be a list"),
    ],
)
def test_invalid_rows_are_refused(change: dict[str, object], origin: str, message: str) -> None:
    with pytest.raises(BenchmarkDataError, match=message):
        ORIGINAL.read(rm_bench_row(1) | change, origin)


@pytest.mark.skipif(not DATA.exists(), reason=f"the RM-Bench data is missing: {DATA}")
def test_published_files_are_read() -> None:
    rows = [
        (row, file.name)
        for file in sorted(DATA.glob("*_filtered.json"))
        for row in json.loads(file.read_text(encoding="utf-8"))
    ]
    items = read(ORIGINAL, rows)
    assert len({item.key for item in items}) == len(items) == 798
    result = ORIGINAL.compute_result(scored(items, lambda item: [1.0] * 3 + [0.0] * 3))
    assert result.missing == ("subset math: has none of 529 items",)
