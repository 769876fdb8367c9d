"""VL-RewardBench: groups by id, ties, counts of the leaderboard, and rows that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from published_rows import image_row, read, scored, whole

from rm_core.benchmarks.base import Preference, ScoredItem
from rm_core.benchmarks.registry import BENCHMARKS
from rm_core.benchmarks.vl_rewardbench import GROUPS
from rm_core.errors import BenchmarkDataError

BENCHMARK = BENCHMARKS["vl-rewardbench"]


def test_counts_of_leaderboard_give_its_scores() -> None:
    """The row of Skywork-VL-Reward-7B on the leaderboard."""
    remaining = {"general": 120, "hallucination": 601, "reasoning": 195}
    groups = {source: group for group, sources in GROUPS.items() for source in sources}
    items = []
    for item in read(BENCHMARK, whole("vl-rewardbench")):
        group = groups[item.subset]
        remaining[group] -= 1
        is_right = remaining[group] >= 0
        better = item.preferences[0].better
        items.append(ScoredItem(item, (1.0, 0.0) if (better == 0) == is_right else (0.0, 1.0)))
    result = BENCHMARK.compute_result(items)
    scores = {name: round(100 * section.score, 1) for name, section in result.sections.items()}
    assert scores == {"general": 65.6, "hallucination": 80.2, "reasoning": 61.3}
    assert result.overall == 916 / 1250
    mean = (120 / 183 + 601 / 749 + 195 / 318) / 3
    assert result.extra["mean_of_sections"] == pytest.approx(mean, abs=1e-12)
    assert result.missing == ()
    assert {name: subset.num_items for name, subset in result.subsets.items()} == {
        source: count for sources in GROUPS.values() for source, count in sources.items()
    }


@pytest.mark.parametrize(
    ("row_id", "source"),
    [
        ("RLAIF-V-14", "rlaif-v"),
        ("RLHF-V-31", "rlhf-v"),
        ("hallucination_pair-1003", "povid"),
        ("wildvision-battle-13", "wildvision-battle"),
        ("mathverse_1294", "reasoning_tasks"),
        ("mmmu_pro_test_Electronics_6", "reasoning_tasks"),
        ("LRVInstruction-000000007746", "vlfeedback"),
        ("jailbreak-typo-HateSpeech-70", "vlfeedback"),
        ("svit-complex_reasoning-876", "vlfeedback"),
        ("mathverse", "reasoning_tasks"),
        ("rlaif-v-1", "vlfeedback"),
    ],
)
def test_source_is_beginning_of_id(row_id: str, source: str) -> None:
    assert BENCHMARK.read(image_row(row_id), "").subset == source


def test_prompt_is_image_then_question_without_mark() -> None:
    row = image_row("hallucination_pair-1", [1, 0]) | {"query": "<image>\nWhat is it?"}
    item = BENCHMARK.read(row, "")
    image = b"image of hallucination_pair-1"
    assert item.prompt == [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": image},
                {"type": "text", "text": "What is it?"},
            ],
        }
    ]
    assert item.responses == ("One answer.", "Another answer.")
    assert item.preferences == (Preference(1, 0),)


@pytest.mark.parametrize(
    ("image", "source"),
    [
        (b"bytes", b"bytes"),
        ({"bytes": b"bytes", "path": "a.png"}, b"bytes"),
        ({"bytes": None, "path": "a.png"}, "a.png"),
        ("images/a.png", "images/a.png"),
    ],
)
def test_image_is_read_in_each_form(image: Any, source: bytes | str) -> None:
    item = BENCHMARK.read(image_row("x") | {"image": image}, "")
    assert item.prompt[0]["content"][0]["image"] == source


def test_column_image_path_is_read_without_image() -> None:
    row = image_row("x") | {"image_path": "images/povid/a.jpg"}
    assert BENCHMARK.read(row, "").prompt[0]["content"][0]["image"] == b"image of x"
    del row["image"]
    assert BENCHMARK.read(row, "").prompt[0]["content"][0]["image"] == "images/povid/a.jpg"


@pytest.mark.parametrize(
    ("rewards", "right"), [((1.0, 0.0), 1.0), ((0.0, 1.0), 0.0), ((0.5, 0.5), 0.0)]
)
def test_equal_rewards_are_wrong(rewards: tuple[float, float], right: float) -> None:
    items = [BENCHMARK.read(image_row("mmmu_1"), "")]
    result = BENCHMARK.compute_result(scored(items, lambda _: rewards))
    assert result.overall == right
    assert list(result.sections) == ["reasoning"]
    assert "subset reasoning_tasks: has 1 of 318 items" in result.missing
    assert "subset povid: has none of 448 items" in result.missing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "the column `image` is null; it must be the bytes of an image"),
        ({"image": b""}, "the column `image` is a bytes; it must be"),
        ({"image": ""}, "the column `image` is ''; it must be"),
        ({"image": 7}, "the column `image` is 7; it must be"),
        ({"image": {"bytes": None, "path": None}}, "the column `image` is an object; it must be"),
        ({"image": ["a.png"]}, "the column `image` is a list; it must be"),
        ({"query": None}, "the column `query` is null; it must be text"),
        ({"response": ["one"]}, "`response` has 1 texts; it must have 2"),
        ({"response": "one"}, "`response` is 'one'; it must be a list"),
        ({"response": ["one", None]}, "an item of the column `response` is null"),
        ({"human_ranking": [0, 0]}, r"`human_ranking` is \[0, 0\]; it must be \[0, 1\]"),
        ({"human_ranking": [0]}, r"`human_ranking` is \[0\]; it must be \[0, 1\]"),
        ({"human_ranking": [0, -1]}, "`human_ranking` is -1; it must be a whole number"),
        ({"human_ranking": "[0, 1]"}, r"`human_ranking` is '\[0, 1\]'; it must be a list"),
        ({"id": None}, "the column `id` is null"),
    ],
)
def test_invalid_row_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchmarkDataError, match=message):
        BENCHMARK.read(image_row("x") | changes, "test.parquet")


def test_missing_image_names_columns() -> None:
    row = image_row("x")
    del row["image"]
    with pytest.raises(BenchmarkDataError, match="the column `image` is missing; the columns are"):
        BENCHMARK.read(row, "test.parquet")
