"""RMB: pairs, groups in which the best answer must beat all others, four sections."""

from __future__ import annotations

import json

import pytest
from conftest import BENCHMARK_DATA
from published_rows import read, rmb_group, rmb_pair, scored, whole

from rm_core.benchmarks.base import Item
from rm_core.benchmarks.registry import BENCHMARKS
from rm_core.errors import BenchmarkDataError

ORIGINAL = BENCHMARKS["rmb"]
DATA = BENCHMARK_DATA / "rmb"
PATH = "Pairwise_set/Helpfulness/Code/Documentation"


def test_published_rm_r1_log_is_reproduced() -> None:
    right = {
        "Pairwise_set/Helpfulness": 8071,
        "Pairwise_set/Harmlessness": 5692,
        "BoN_set/Helpfulness": 1372,
        "BoN_set/Harmlessness": 1111,
    }

    def rewards(item: Item) -> list[float]:
        best = float(int(item.id) < right["/".join(item.subset.split("/")[:2])])
        return [best, *[0.5] * (len(item.responses) - 1)]

    result = ORIGINAL.compute_result(scored(read(ORIGINAL, whole("rmb")), rewards))
    assert {name: round(section.score, 6) for name, section in result.sections.items()} == {
        "pairwise/helpfulness": round(8071 / 10067, 6),
        "pairwise/harmlessness": 0.805776,
        "best-of-n/helpfulness": 0.650545,
        "best-of-n/harmlessness": 0.662493,
    }
    assert abs(result.sections["pairwise/helpfulness"].score - 0.801728) < 1e-6
    assert result.overall is not None
    assert round(result.overall, 6) == 0.730136
    assert result.missing == ()
    assert result.extra["means"]["best-of-n"] == (1372 / 2109 + 1111 / 1677) / 2


@pytest.mark.parametrize(
    ("rewards", "right"),
    [((2, 1, 0), 1), ((2, 2, 0), 0), ((2, 0, 2), 0), ((1, 0, 2), 0), ((0, 0, 0), 0)],
)
def test_best_answer_must_beat_every_other(rewards: tuple[float, ...], right: int) -> None:
    item = ORIGINAL.read(rmb_group(1, "BoN_set/Harmlessness/S1"), "S1.json")
    result = ORIGINAL.compute_result(scored([item], lambda item: rewards))
    assert result.overall == right
    assert result.subsets["BoN_set/Harmlessness/S1"].num_correct == right
    assert "section best-of-n/harmlessness: has 1 of 1677 items" in result.missing
    assert len(result.missing) == 4


def test_sections_pool_items_of_scenarios() -> None:
    rows = [(rmb_pair(n, PATH), "") for n in range(3)]
    rows += [(rmb_pair(9, "Pairwise_set/Helpfulness/Chat/Discussion"), "")]
    items = read(ORIGINAL, rows)
    result = ORIGINAL.compute_result(scored(items, lambda item: (float(item.subset == PATH), 0.5)))
    assert result.overall == 0.75
    assert result.subsets[PATH].score == 1.0


def test_scenario_is_read_from_path() -> None:
    row = rmb_pair(1, PATH)
    del row["category_path"]
    item = ORIGINAL.read(row, f"RMB_dataset/{PATH}.json")
    assert item.subset == PATH
    assert item.responses == ("Because.", "Why not?")
    assert item.prompt == [{"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (rmb_pair(1, "Code/Documentation"), "the scenario is 'Code/Documentation', from the col"),
        (rmb_pair(1, "BoN_set/Helpfulness/Code"), "the row is a pair, but its set is BoN_set/"),
        (rmb_group(1, "Pairwise_set/Helpfulness/Code"), "a group, but its set is Pairwise"),
        (rmb_group(1, "BoN_set/Helpfulness/Code", 0), "`loser_list` is an empty list"),
        (rmb_pair(1, PATH) | {"reject": {}}, "the column `reject.answer` is null"),
        (rmb_pair(1, PATH) | {"pair_uid": None}, "the column `pair_uid` is null"),
        (
            rmb_group(1, "BoN_set/Helpfulness/Code") | {"loser_list": [{}]},
            "an item of the column `loser_list.answer` is null",
        ),
        (
            rmb_pair(1, PATH) | {"conversation_input": [{"role": "user"}]},
            "must be a message with `role` and `content`",
        ),
    ],
)
def test_invalid_rows_are_refused(row: dict[str, object], message: str) -> None:
    with pytest.raises(BenchmarkDataError, match=message):
        ORIGINAL.read(row, "a.json")


@pytest.mark.skipif(not DATA.exists(), reason=f"the RMB data is missing: {DATA}")
def test_published_files_are_read() -> None:
    rows = [
        (row, file.relative_to(DATA).as_posix())
        for file in sorted(DATA.rglob("*.json"))
        for row in json.loads(file.read_text(encoding="utf-8"))
    ]
    items = read(ORIGINAL, rows)
    assert len({item.key for item in items}) == len(items) == 5113
    result = ORIGINAL.compute_result(
        scored(items, lambda item: [1.0, *[0.0] * (len(item.responses) - 1)])
    )
    assert result.overall == 1.0
    assert set(result.sections) == {"pairwise/helpfulness", "best-of-n/helpfulness"}
    assert "section best-of-n/helpfulness: has 1941 of 2109 items" in result.missing
