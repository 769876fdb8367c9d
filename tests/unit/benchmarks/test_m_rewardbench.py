"""M-RewardBench: languages and sections by hand, weights of Reasoning, and where a language is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import benchmark_files
import pytest
from published_rows import read, scored, translated_row, whole

from rm_core.benchmarks.base import ScoredItem
from rm_core.benchmarks.m_rewardbench import LANGUAGES, PARTS, MRewardBench
from rm_core.errors import BenchmarkDataError
from serve.evaluation.data import load_data

BENCHMARK = MRewardBench()
RIGHT, WRONG = (1.0, 0.0), (0.0, 1.0)


def test_published_counts_are_whole() -> None:
    assert sum(count for parts in PARTS.values() for count in parts.values()) == 2869
    result = BENCHMARK.compute_result(
        scored(read(BENCHMARK, whole("m-rewardbench")), lambda _: RIGHT)
    )
    assert (result.overall, result.missing) == (1.0, ())
    assert tuple(result.sections) == LANGUAGES
    assert {section.num_items for section in result.sections.values()} == {2869}


def test_scores_by_hand() -> None:
    """One language with every section, one with Chat alone."""
    grades = {
        "alpacaeval-easy": [RIGHT, WRONG],
        "mt-bench-med": [RIGHT, RIGHT],
        "llmbar-natural": [(0.5, 0.5)],
        "donotanswer": [RIGHT, RIGHT, WRONG],
        "math-prm": [RIGHT],
        "hep-go": [WRONG],
        "hep-rust": [RIGHT, WRONG],
    }
    items, number = [], 0
    for source, rewards in grades.items():
        for pair in rewards:
            number += 1
            row = translated_row(number, "tur_Latn", source)
            items.append(ScoredItem(BENCHMARK.read(row, "test.jsonl"), pair))
    row = translated_row(1, "arb_Arab", "mt-bench-easy")
    items.append(ScoredItem(BENCHMARK.read(row, "test.jsonl"), WRONG))
    result = BENCHMARK.compute_result(items)
    reasoning = (1 + 1 / 3) / 2  # math and code weigh the same
    turkish = (3 / 4 + 0 + 2 / 3 + reasoning) / 4
    assert {name: section.score for name, section in result.sections.items()} == {
        "arb_Arab": 0.0,
        "tur_Latn": pytest.approx(turkish),
    }
    assert result.overall == pytest.approx(turkish / 2)
    assert result.extra["metrics"] == {
        "Chat": pytest.approx(3 / 8),
        "Chat Hard": 0.0,
        "Safety": pytest.approx(2 / 3),
        "Reasoning": pytest.approx(reasoning),
    }
    assert result.subsets["tur_Latn/code"].score == pytest.approx(1 / 3)
    assert "subset tur_Latn/Chat: has 4 of 296 items" in result.missing
    assert "subset zho_Hans/Chat: has none of 296 items" in result.missing


@pytest.mark.parametrize(
    ("changes", "origin", "language"),
    [
        ({}, "test.jsonl", "tur_Latn"),
        ({"language": "tr"}, "data/vie_Latn/test-00000-of-00001.parquet", "vie_Latn"),
        ({"language": None}, "ORG/NAME/zho_Hant/test.json", "zho_Hant"),
    ],
)
def test_language_is_column_or_folder(changes: dict[str, Any], origin: str, language: str) -> None:
    item = BENCHMARK.read(translated_row(1, "tur_Latn", "math-prm") | changes, origin)
    assert item.subset == f"{language}/math-prm"


def test_first_version_has_subset_in_its_own_column() -> None:
    row = translated_row(1, "tur_Latn", "x") | {"source": None, "subset": "hep-python"}
    item = BENCHMARK.read(row, "raw.json")
    assert (item.subset, item.metadata) == ("tur_Latn/code", {"source": "hep-python"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "de-en"}, "the column `source` is 'de-en'; it must be alpacaeval-easy, "),
        ({"source": None}, "the column `subset` is 'unused'; it must be"),
        ({"language": "eng_Latn"}, "nor a folder of the file is a language; allowed: arb_Arab"),
        ({"chosen": None}, "the column `chosen` is null; it must be text"),
        ({"prompt": ["text"]}, "the column `prompt` is a list; it must be text"),
        ({"id": None}, "the column `id` is null"),
    ],
)
def test_invalid_row_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchmarkDataError, match=message):
        BENCHMARK.read(translated_row(1, "tur_Latn", "math-prm") | changes, "test.jsonl")


def test_pairs_of_translations_are_not_read(tmp_path: Path) -> None:
    rows = {
        **benchmark_files.m_rewardbench(),
        "translation/test-00000-of-00001.jsonl": [{"id": 1, "subset": "de-en"}],
    }
    folder = benchmark_files.write(tmp_path / "data", rows)
    lines: list[str] = []
    data = load_data(
        BENCHMARK, str(folder), split=None, exclude=tmp_path / "out", notify=lines.append
    )
    assert len(data.items) == 24
    assert {item.subset.split("/")[0] for item in data.items} == {"deu_Latn", "zho_Hans"}
    assert lines == ["not read, since m-rewardbench is in other files: test-00000-of-00001.jsonl"]
