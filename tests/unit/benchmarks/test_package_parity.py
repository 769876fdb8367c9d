"""Section scores equal those of the `rewardbench` package, over 1,000 random files of rewards.

The package's functions are taken from its installed source and run unchanged. Their imports are
heavy and mostly unused; a table with the few methods that the functions call, and numpy, replace
the imports.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from peers import peer_functions, peer_path
from published_rows import REWARDBENCH, read, rewardbench2_row, rewardbench_row, whole

from rm_core.benchmarks.base import ScoredItem
from rm_core.benchmarks.registry import BENCHMARKS, build_benchmark
from rm_core.benchmarks.rewardbench2 import SUBSETS

NUM_FILES = 1000
VALUES = (-1.0, 0.0, 0.25, 0.5, 2.0)
FUNCTIONS = (
    "calculate_scores_per_section",
    "reroll_and_score_dataset",
    "sample_stats",
    "_compute_prompt_stats",
    "process_single_model",
)


class Column(list[Any]):
    def tolist(self) -> list[Any]:
        return list(self)

    def unique(self) -> list[Any]:
        return list(dict.fromkeys(self))


class Table:
    """The subset of a data frame's and a dataset's methods that the functions use."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        return iter(self.rows)

    def __getitem__(self, name: str) -> Column:
        return Column(row[name] for row in self.rows)

    @property
    def columns(self) -> list[str]:
        return list(self.rows[0])

    @property
    def iloc(self) -> Any:
        rows = self.rows

        class Slices:
            def __getitem__(self, which: slice) -> Table:
                return Table(rows[which])

        return Slices()

    def to_pandas(self) -> Table:
        return self

    @staticmethod
    def from_pandas(table: Table) -> Table:
        return table

    @staticmethod
    def from_dict(columns: dict[str, list[Any]]) -> Table:
        rows = zip(*columns.values(), strict=True)
        return Table([dict(zip(columns, row, strict=True)) for row in rows])


class Pandas:
    DataFrame = Table


@pytest.fixture(scope="module")
def package() -> dict[str, Any]:
    """Scoring functions and constants of the package, by name."""
    variables = {"np": np, "pd": Pandas, "Dataset": Table}
    names = peer_functions("rewardbench/utils.py", FUNCTIONS, **variables)
    constants = peer_path("rewardbench") / "constants.py"
    exec(constants.read_text(encoding="utf-8"), names)
    return names


def test_counts_and_sections_equal_package(package: dict[str, Any]) -> None:
    counts = dict(package["EXAMPLE_COUNTS"])
    assert counts.pop("math-prm") == 984
    ours = {name: count for name, count in REWARDBENCH.items() if name != "math-prm"}
    assert ours == counts
    sections = (
        BENCHMARKS["rewardbench"]
        .compute_result(
            [ScoredItem(item, (1.0, 0.0)) for item in read(BENCHMARKS["rewardbench"], _one_each())]
        )
        .sections
    )
    assert list(sections) == list(package["SUBSET_MAPPING"])


def _one_each() -> list[tuple[dict[str, Any], str]]:
    return [(rewardbench_row(n, name), "") for n, name in enumerate(REWARDBENCH)]


def test_rewardbench_equals_package_on_random_files(package: dict[str, Any]) -> None:
    benchmark, rng = BENCHMARKS["rewardbench"], random.Random(6)
    items = read(benchmark, whole("rewardbench"))
    by_subset = {name: [i for i in items if i.subset == name] for name in REWARDBENCH}
    num_ties = 0
    for number in range(NUM_FILES):
        scored, metrics = [], {}
        for name, of_subset in by_subset.items():
            # Sometimes complete files; otherwise a few rows of most subsets, which test as much.
            limit = len(of_subset) if number % 250 == 0 else rng.choice((0, 1, 2, 3, 7))
            if not limit:
                continue
            pairs = [(rng.choice(VALUES), rng.choice(VALUES)) for _ in of_subset[:limit]]
            num_ties += sum(chosen == rejected for chosen, rejected in pairs)
            scored += [ScoredItem(*one) for one in zip(of_subset, pairs, strict=False)]
            # As in scripts/run_rm.py.
            results = [1 if chosen > rejected else 0 for chosen, rejected in pairs]
            metrics[name] = sum(results) / len(results)
        rng.shuffle(scored)
        theirs = package["calculate_scores_per_section"](
            package["EXAMPLE_COUNTS"], package["SUBSET_MAPPING"], metrics
        )
        result = benchmark.compute_result(scored)
        for section, score in theirs.items():
            # The package has 0 for a section without rows; ours lists the section as missing.
            ours = result.sections[section].score if section in result.sections else 0.0
            assert ours == pytest.approx(score, abs=1e-12)
        assert {name: subset.score for name, subset in result.subsets.items()} == metrics
    assert num_ties > NUM_FILES


def test_rewardbench2_best_of_four_equals_package_on_random_files(package: dict[str, Any]) -> None:
    benchmark, rng = BENCHMARKS["rewardbench2"], random.Random(7)
    items = [
        benchmark.read(rewardbench2_row(f"{name}-{n}", name), "t.parquet")
        for name in SUBSETS
        if name != "Ties"
        for n in range(4)
    ]
    for _ in range(NUM_FILES):
        scored = [ScoredItem(item, [rng.choice(VALUES) for _ in range(4)]) for item in items]
        rows = [
            {"text": "", "scores": reward, "subset": one.item.subset, "id": one.item.id}
            for one in scored
            for reward in one.rewards
        ]
        rolled = package["reroll_and_score_dataset"](Table(rows), [4] * len(items))
        rng.shuffle(scored)
        result = benchmark.compute_result(scored)
        for name, subset_score in result.subsets.items():
            theirs = [row["results"] for row in rolled if row["subset"] == name]
            assert subset_score.score == pytest.approx(np.mean(theirs), abs=1e-12)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning")
def test_rewardbench2_ties_equal_package_on_random_files(package: dict[str, Any]) -> None:
    is_newer = "_compute_prompt_stats" in package
    benchmark = build_benchmark("rewardbench2", no_spread="limit" if is_newer else "left-out")
    score: Callable[[Table], tuple[Any, float]] = package["process_single_model"]
    rng, num_without_spread = random.Random(8), 0
    for _ in range(NUM_FILES):
        scored = []
        for number in range(rng.randint(1, 6)):
            for kind, right in (("ref", 1), ("tied", rng.randint(2, 4))):
                row = rewardbench2_row(f"{kind}:{number}", "Ties", right, rng.randint(1, 5))
                item = benchmark.read(row, "t.parquet")
                rewards = [
                    rng.choice(VALUES) + (index < right) for index in range(len(item.responses))
                ]
                num_without_spread += kind == "tied" and len(set(rewards[:right])) == 1
                scored.append(ScoredItem(item, rewards))
        unpaired = rewardbench2_row("ref:99", "Ties", 1, 2)
        if rng.random() < 0.3:
            scored.append(ScoredItem(benchmark.read(unpaired, ""), [1.0, 0.0, 0.5]))
        table = DataSet(
            [
                {
                    "id": one.item.id,
                    "scores": list(one.rewards),
                    "num_correct": one.item.metadata["num_correct"],
                }
                for one in scored
            ]
        )
        rng.shuffle(scored)
        _, theirs = score(table)
        result = benchmark.compute_result(scored)
        assert result.subsets["Ties"].score == pytest.approx(theirs, abs=1e-12)
    assert num_without_spread > 100


class DataSet(Table):
    """Adds the methods that newer versions of the package need."""

    @property
    def column_names(self) -> list[str]:
        return self.columns

    def add_column(self, name: str, values: list[Any]) -> Table:
        rows = zip(self.rows, values, strict=True)
        return Table([row | {name: value} for row, value in rows])
