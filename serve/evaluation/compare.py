"""Two evaluations of one benchmark, item by item: `skyreward compare-runs`.

What is counted is what the benchmark counts: items, or the single comparisons of an item where it
counts those (RM-Bench's nine, PPE's pairs), which are then not independent of each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rm_core.benchmarks.base import (
    Benchmark,
    BenchmarkResult,
    DecomposableBenchmark,
    Item,
    ScoredItem,
)
from rm_core.benchmarks.registry import build_benchmark as made
from rm_core.benchmarks.registry import list_options
from rm_core.benchmarks.statistics import McNemar, mcnemar
from serve.errors import EvaluationError
from serve.evaluation.artifacts import SUMMARY, read_summary
from serve.evaluation.data import load_data
from serve.evaluation.runner import ITEMS, read_items
from serve.evaluation.score_files import SCORES, read_scores


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """One of the two.

    Attributes:
        name: the model's, or the file's.
        place: what was given.
        benchmark: in the way that it was computed.
        scored: items with their rewards.
    """

    name: str
    path: str
    benchmark: Benchmark
    scored_items: tuple[ScoredItem, ...]

    @property
    def result(self) -> BenchmarkResult:
        """Of its items."""
        return self.benchmark.compute_result(self.scored_items)


class FlippedItem(NamedTuple):
    """An item, or a comparison of one, that one run alone has right.

    Attributes:
        item: which.
        now_right: whether it is the second run that has it right.
        margins: least reward of better over worse answers, of the first run and of the second.
    """

    item: Item
    now_right: bool
    margins: tuple[float, float]

    @property
    def shift(self) -> float:
        """How far the margin moved."""
        return self.margins[1] - self.margins[0]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """What two runs have in common, and what not.

    Attributes:
        runs: the two.
        num_items: that both have.
        only: items that only the first has, and only the second.
        unit: what is counted.
        counts: both right, only the first, only the second, both wrong.
        test: McNemar's, on those that differ.
        agreement: share that is right in both or wrong in both.
        correlation: of the rewards of all answers: Pearson's and Spearman's; None where rewards
            do not vary.
        changed: the largest shifts first.
    """

    runs: tuple[LoadedRun, LoadedRun]
    num_items: int
    only: tuple[int, int]
    unit: str
    counts: tuple[int, int, int, int]
    test: McNemar
    agreement: float
    correlation: tuple[float, float] | None
    flipped_items: tuple[FlippedItem, ...]


def find_benchmark(path: Path) -> str | None:
    """The name of the benchmark that a folder or a file of rewards is of, where a summary tells."""
    folder = path if path.is_dir() else path.parent
    if not (folder / SUMMARY).is_file():
        return None
    return str(read_summary(folder)["benchmark"])


def load_run(
    path: Path,
    *,
    benchmark: str | None,
    data: str | None,
    split: str | None,
    notify: Callable[[str], None],
) -> LoadedRun:
    """A run from what was given on the command line.

    Args:
        path: folder of an evaluation, or a file of rewards.
        benchmark: of a file of rewards that lies beside no summary.
        data: its items, where there is no folder of an evaluation to have them.
        split: of the data.
        say: tells a person a line.

    Raises:
        EvaluationError: it is not known which benchmark it is, or which items.
        RewardError: data or rewards cannot be read.
    """
    folder, scores = (path, path / SCORES) if path.is_dir() else (path.parent, path)
    summary: Mapping[str, Any] = {}
    if path.is_dir() or (folder / SUMMARY).is_file():
        summary = read_summary(folder)
    name = benchmark or find_benchmark(path)
    if name is None:
        raise EvaluationError(f"{path} does not tell its benchmark; give --benchmark NAME")
    if summary and summary["benchmark"] != name:
        raise EvaluationError(f"{path} is of {summary['benchmark']}, not of {name}")
    used = summary.get("used", {})
    known = [option.name for option in list_options(name)]
    chosen = made(name, **{option: used[option] for option in known if option in used})
    if data is not None:
        items = list(load_data(chosen, data, split=split, exclude=folder, notify=notify).items)
    else:
        items = read_items(_find_items(folder, path))
    rewards = read_scores(scores, items)
    scored = [ScoredItem(item, rewards[item.key]) for item in items if item.key in rewards]
    return LoadedRun(str(summary.get("model", path.stem)), str(path), chosen, tuple(scored))


def compare(first: LoadedRun, second: LoadedRun) -> RunComparison:
    """Compare two runs on the items that both have.

    Raises:
        EvaluationError: they are of two benchmarks, or of different items.
    """
    if first.benchmark.name != second.benchmark.name:
        raise EvaluationError(
            f"{first.path} is of {first.benchmark.name} and {second.path} of "
            f"{second.benchmark.name}; compare runs of one benchmark"
        )
    others = {one.item.key: one for one in second.scored_items}
    pairs = [(one, others[one.item.key]) for one in first.scored_items if one.item.key in others]
    if not pairs:
        raise EvaluationError(f"{first.path} and {second.path} have no item in common")
    for a, b in pairs:
        if (a.item.prompt, a.item.responses) != (b.item.prompt, b.item.responses):
            raise EvaluationError(
                f"item {a.item.id!r} of {a.item.subset!r} has other texts in {first.path} than in "
                f"{second.path}, so the runs are of different data"
            )
    counts = [0, 0, 0, 0]
    changed = []
    for a, b in pairs:
        for unit_a, unit_b in zip(_units(first, a), _units(second, b), strict=True):
            counts[2 * (not unit_a.right) + (not unit_b.right)] += 1
            if unit_a.right != unit_b.right:
                changed.append(FlippedItem(a.item, unit_b.right, (unit_a.margin, unit_b.margin)))
    changed.sort(key=lambda one: -abs(one.shift))
    both, only_first, only_second, neither = counts
    return RunComparison(
        # Figures too are of what both have: else a half would seem to differ from its whole.
        runs=(
            replace(first, scored_items=tuple(a for a, _ in pairs)),
            replace(second, scored_items=tuple(b for _, b in pairs)),
        ),
        num_items=len(pairs),
        only=(len(first.scored_items) - len(pairs), len(second.scored_items) - len(pairs)),
        unit="items" if sum(counts) <= len(pairs) else "comparisons",
        counts=(both, only_first, only_second, neither),
        test=mcnemar(only_first, only_second),
        agreement=(both + neither) / max(1, sum(counts)),
        correlation=_correlation(
            [float(reward) for a, _ in pairs for reward in a.rewards],
            [float(reward) for _, b in pairs for reward in b.rewards],
        ),
        flipped_items=tuple(changed),
    )


class _Unit(NamedTuple):
    right: bool
    margin: float


def _units(run: LoadedRun, one: ScoredItem) -> Iterator[_Unit]:
    """What is counted of an item."""
    margins = [one.rewards[p.better] - one.rewards[p.worse] for p in one.item.preferences]
    if isinstance(run.benchmark, DecomposableBenchmark):
        credit = run.benchmark.grade_item(one)
        if credit.total == len(margins) > 1:
            yield from (_Unit(margin > 0, margin) for margin in margins)
        elif credit.total:
            # Also where a tie is right, or right in part.
            yield _Unit(credit.right == credit.total, min(margins))
    elif margins:
        yield _Unit(min(margins) > 0, min(margins))


def _correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    try:
        pearson = statistics.correlation(first, second)
        return pearson, statistics.correlation(_ranks(first), _ranks(second))
    except statistics.StatisticsError:  # of constants, or of a single number
        return None


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks; equal values have the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in order[start : end + 1]:
            ranks[place] = (start + end) / 2
        start = end + 1
    return ranks


def _find_items(folder: Path, given: Path) -> Path:
    for path in (folder / ITEMS, folder.parent / ITEMS):
        if path.is_file():
            return path
    raise EvaluationError(
        f"the items that {given} is of are not beside it; give them by --data PATH (and "
        "--benchmark NAME)"
    )
