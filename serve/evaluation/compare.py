"""Item-by-item comparison of two evaluations of a benchmark: `skyreward compare-runs`.

Every metric has its difference with a paired bootstrap interval, which fits shares, F1, PRMScore,
mean reciprocal ranks and means of sections alike. McNemar's test counts what the benchmark counts:
items, or the single comparisons of an item (RM-Bench's nine, PPE's pairs). Comparisons of one item
are not independent of each other, which the bootstrap takes into account and the test does not.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rm_core.benchmarks.base import (
    Benchmark,
    BenchmarkResult,
    DecomposableBenchmark,
    Item,
    ItemScore,
    JointlyGradedBenchmark,
    ScoredItem,
)
from rm_core.benchmarks.registry import build_benchmark, list_options
from serve.errors import EvaluationError, MissingExtraError
from serve.evaluation.data import load_data
from serve.evaluation.files import SUMMARY, read_summary
from serve.evaluation.result import collect_metrics
from serve.evaluation.runner import ITEMS, read_items
from serve.evaluation.scores import SCORES, read_scores
from serve.evaluation.statistics import Interval, compute_difference_intervals
from serve.jobs.inputs.image_references import refer_to_images

# Metrics of other results that a comparison has too, in addition to the curves of best of n.
_FURTHER_METRICS = ("f1", "negative_f1")


class McNemar(NamedTuple):
    """McNemar's test of whether two runs on the same items differ in accuracy.

    Attributes:
        only_first: number of items that only the first run has right.
        only_second: number of items that only the second run has right.
        exact_p: two-sided p-value of the binomial distribution.
        chi_square: test statistic with continuity correction.
        chi_square_p: p-value with one degree of freedom; accurate for 25 differing items or more.
    """

    only_first: int
    only_second: int
    exact_p: float
    chi_square: float
    chi_square_p: float


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """One of the two runs.

    Attributes:
        name: name of the model, or of the file.
        path: path as given on the command line.
        benchmark: benchmark with the options of the run.
        scored_items: items with their rewards.
    """

    name: str
    path: str
    benchmark: Benchmark
    scored_items: tuple[ScoredItem, ...]

    @property
    def result(self) -> BenchmarkResult:
        """Result of the benchmark on the run's items."""
        return self.benchmark.compute_result(self.scored_items)

    @property
    def metrics(self) -> dict[str, float | None]:
        """Metrics of the run's items by name."""
        return self.collect_metrics(self.result)

    def collect_metrics(self, result: BenchmarkResult) -> dict[str, float | None]:
        """Return the metrics of a result; those of steps include the subsets."""
        metrics = collect_metrics(result)
        if self.benchmark.kinds == ("step",):
            metrics |= {name: subset.score for name, subset in result.subsets.items()}
        metrics |= {name: result.extra[name] for name in _FURTHER_METRICS if name in result.extra}
        return metrics | dict(_iter_best_of_n(result))


class FlippedItem(NamedTuple):
    """An item, or one of its comparisons, that is right in only one of the runs.

    Attributes:
        item: the item.
        now_right: whether the second run has it right.
        margins: smallest margin of a better over a worse answer in the first and the second run.
    """

    item: Item
    now_right: bool
    margins: tuple[float, float]

    @property
    def shift(self) -> float:
        """Margin in the second run minus margin in the first run."""
        return self.margins[1] - self.margins[0]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """The comparison of two runs.

    Attributes:
        runs: the two runs, restricted to the items of both.
        num_items: number of items of both runs.
        only: number of items of only the first run and of only the second run.
        unit: unit of the counts, `items` or `comparisons`.
        counts: number of units right in both runs, only in the first, only in the second, in
            neither.
        test: McNemar's test on the units that differ.
        agreement: share of the units that are right in both runs or wrong in both; None without
            units.
        metrics: metrics of both runs by name; None where a run lacks a metric.
        intervals: 95% intervals of the differences of metrics, second minus first, by name.
        correlations: Pearson's and Spearman's correlation of `rewards` (of all answers or steps;
            a judge has none) and `margins` (of better over worse answers), if they vary.
        flipped_items: units that differ, largest shifts of the margin first.
    """

    runs: tuple[LoadedRun, LoadedRun]
    num_items: int
    only: tuple[int, int]
    unit: str
    counts: tuple[int, int, int, int]
    test: McNemar
    agreement: float | None
    metrics: Mapping[str, tuple[float | None, float | None]]
    intervals: Mapping[str, Interval]
    correlations: Mapping[str, tuple[float, float]]
    flipped_items: tuple[FlippedItem, ...]

    @property
    def names(self) -> tuple[str, str]:
        """Names of the runs' models, or their paths if the names are equal."""
        first, second = self.runs
        if first.name != second.name:
            return first.name, second.name
        return first.path, second.path

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON data."""
        both, only_first, only_second, neither = self.counts
        pearson, spearman = self.correlations.get("rewards", (None, None))
        margins = self.correlations.get("margins", (None, None))
        return {
            "benchmark": self.runs[0].benchmark.name,
            "models": [run.name for run in self.runs],
            "num_items": self.num_items,
            "only_first": self.only[0],
            "only_second": self.only[1],
            "figures": dict(self.metrics),
            "difference_intervals": dict(self.intervals),
            "unit": self.unit,
            "right_in_both": both,
            "right_in_first_only": only_first,
            "right_in_second_only": only_second,
            "wrong_in_both": neither,
            "agreement": self.agreement,
            "mcnemar": self.test._asdict(),
            "pearson": pearson,
            "spearman": spearman,
            "margins": {"pearson": margins[0], "spearman": margins[1]},
            "changed": [
                {
                    "id": one.item.id,
                    "subset": one.item.subset,
                    "now_right": one.now_right,
                    "margins": one.margins,
                }
                for one in self.flipped_items
            ],
        }


def require_scipy() -> None:
    """Raise before runs are loaded if they could not be compared.

    Raises:
        MissingExtraError: the extra `reports` is not installed.
    """
    if importlib.util.find_spec("scipy") is None:
        raise MissingExtraError(
            "the comparison's statistics need scipy, which is not installed: "
            "pip install 'skyreward[reports]'"
        )


def load_runs(
    paths: tuple[Path, Path],
    *,
    benchmark: str | None,
    data: str | None,
    split: str | None,
    notify: Callable[[str], None],
) -> tuple[LoadedRun, LoadedRun]:
    """Load two runs. A file of rewards alone has the benchmark and the items of the other run.

    Args:
        paths: folders of evaluations, or files of rewards.
        benchmark: name of the benchmark, if no path has a summary.
        data: location of the items, if no path has them.
        split: split of the data.
        notify: prints a line for the user.

    Raises:
        EvaluationError: the benchmark or the items of a run are unknown.
        RewardError: the data or the rewards cannot be read.
    """
    a, b = paths
    options: dict[str, Any] = {
        "benchmark": benchmark, "data": data, "split": split, "notify": notify
    }  # fmt: skip
    return load_run(a, other=b, **options), load_run(b, other=a, **options)


def load_run(
    path: Path,
    *,
    benchmark: str | None,
    data: str | None,
    split: str | None,
    notify: Callable[[str], None],
    other: Path | None = None,
) -> LoadedRun:
    """Load a run from the arguments of the command line.

    Args:
        path: folder of an evaluation, or a file of rewards.
        benchmark: name of the benchmark of a file of rewards without a summary next to it.
        data: location of the items, if the folder of the evaluation does not have them.
        split: split of the data.
        notify: prints a line for the user.
        other: path of a run that has what the path lacks: the benchmark, its variant, the items.

    Raises:
        EvaluationError: the benchmark or the items are unknown.
        RewardError: the data or the rewards cannot be read.
    """
    folder, scores = (path, path / SCORES) if path.is_dir() else (path.parent, path)
    summary = read_summary(folder) if path.is_dir() else _read_summary_next_to(path)
    known = summary or (_read_summary_next_to(other) if other else {})
    name = benchmark or known.get("benchmark")
    if name is None:
        raise EvaluationError(f"the benchmark of {path} is unknown; give --benchmark NAME")
    if summary and summary["benchmark"] != name:
        raise EvaluationError(f"{path} is an evaluation of {summary['benchmark']}, not of {name}")
    used = known.get("used", {}) if known.get("benchmark") == name else {}
    variants = {one.name: used[one.name] for one in list_options(name) if one.name in used}
    loaded = build_benchmark(name, **variants)
    if data is not None:
        items = list(load_data(loaded, data, split=split, exclude=folder, notify=notify).items)
    else:
        items = read_items(_find_items(path, other))
    by_key = read_scores(scores, items, loaded)
    scored = [by_key[item.key] for item in items if item.key in by_key]
    return LoadedRun(str(summary.get("model", path.stem)), str(path), loaded, tuple(scored))


def compare(first: LoadedRun, second: LoadedRun) -> RunComparison:
    """Compare two runs on the items that both have.

    Raises:
        EvaluationError: the runs are of two benchmarks, of two variants or of different items.
    """
    if first.benchmark.name != second.benchmark.name:
        raise EvaluationError(
            f"{first.path} is an evaluation of {first.benchmark.name} and {second.path} of "
            f"{second.benchmark.name}; compare runs of one benchmark"
        )
    variants = [run.benchmark.options.to_dict() for run in (first, second)]
    for variant, value in variants[0].items():
        if value != (other := variants[1][variant]):
            name = first.benchmark.name
            raise EvaluationError(
                f"{first.path} has {variant}={value} and {second.path} has {variant}={other}; "
                f"compare runs of one variant. `skyreward eval {name} --scores FILE --variant "
                f"{variant}={value}` computes the results of the same rewards in another variant"
            )
    others = {one.item.key: one for one in second.scored_items}
    pairs = [(one, others[one.item.key]) for one in first.scored_items if one.item.key in others]
    if not pairs:
        raise EvaluationError(f"{first.path} and {second.path} have no item in common")
    for a, b in pairs:
        if _get_content(a.item) != _get_content(b.item):
            raise EvaluationError(
                f"{a.item.label} has different texts or images, or other labels, in {first.path} "
                f"and in {second.path}, so the runs are of different data"
            )
    counts = [0, 0, 0, 0]
    flipped = []
    grades = (
        _grade_items(first, [a for a, _ in pairs]),
        _grade_items(second, [b for _, b in pairs]),
    )
    for (a, b), grade_a, grade_b in zip(pairs, *grades, strict=True):
        for unit_a, unit_b in zip(_iter_units(a, grade_a), _iter_units(b, grade_b), strict=True):
            counts[2 * (not unit_a.right) + (not unit_b.right)] += 1
            if unit_a.right != unit_b.right:
                flipped.append(FlippedItem(a.item, unit_b.right, (unit_a.margin, unit_b.margin)))
    flipped.sort(key=lambda one: -abs(one.shift))
    both, only_first, only_second, neither = counts
    # Results cover the common items too: a partial run must not differ from a complete one.
    runs = (
        replace(first, scored_items=tuple(a for a, _ in pairs)),
        replace(second, scored_items=tuple(b for _, b in pairs)),
    )
    metrics = [run.metrics for run in runs]
    return RunComparison(
        runs=runs,
        num_items=len(pairs),
        only=(len(first.scored_items) - len(pairs), len(second.scored_items) - len(pairs)),
        unit="items" if sum(counts) <= len(pairs) else "comparisons",
        counts=(both, only_first, only_second, neither),
        test=mcnemar(only_first, only_second),
        agreement=(both + neither) / sum(counts) if sum(counts) else None,
        metrics={
            name: (metrics[0].get(name), metrics[1].get(name))
            for name in {**metrics[0], **metrics[1]}
        },
        intervals=compute_difference_intervals(
            first.benchmark, runs[0].scored_items, runs[1].scored_items, first.collect_metrics
        ),
        correlations=dict(_iter_correlations(pairs)),
        flipped_items=tuple(flipped),
    )


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """Compute McNemar's test from the numbers of items that only one of two runs has right."""
    from scipy import stats

    differing = only_first + only_second
    if differing == 0:
        return McNemar(0, 0, 1.0, 0.0, 1.0)
    exact_p = stats.binomtest(only_first, differing).pvalue
    chi_square = max(0, abs(only_first - only_second) - 1) ** 2 / differing
    chi_square_p = stats.chi2.sf(chi_square, 1)
    return McNemar(only_first, only_second, float(exact_p), chi_square, float(chi_square_p))


def _get_content(item: Item) -> str:
    # As JSON, since stored items have lists for tuples. The numbers of rows depend on the file.
    labels = {name: value for name, value in item.metadata.items() if name != "rows"}
    content = [refer_to_images(item.prompt), item.responses, item.preferences, labels]
    return json.dumps(content, sort_keys=True)


class _Unit(NamedTuple):
    right: bool
    margin: float


def _grade_items(run: LoadedRun, scored: Sequence[ScoredItem]) -> Sequence[ItemScore | None]:
    """Return the grades of items; None for a benchmark that has no grades of single items."""
    if isinstance(run.benchmark, DecomposableBenchmark):
        return [run.benchmark.grade_item(one) for one in scored]
    if isinstance(run.benchmark, JointlyGradedBenchmark):
        return run.benchmark.grade_items(scored)
    return [None] * len(scored)


def _iter_units(one: ScoredItem, grade: ItemScore | None) -> Iterator[_Unit]:
    """Yield the units of an item that the benchmark counts."""
    margins = [one.get_margin(preference) for preference in one.item.preferences]
    if grade is not None:
        if grade.total == len(margins) > 1:
            yield from (_Unit(margin > 0, margin) for margin in margins)
        elif grade.total:
            # Also for benchmarks that count a tie as right, or as partly right.
            yield _Unit(grade.right == grade.total, min(margins, default=0.0))
    elif margins:
        yield _Unit(min(margins) > 0, min(margins))


def _iter_best_of_n(result: BenchmarkResult) -> Iterator[tuple[str, float]]:
    """Yield the points of the curves of best of n, for n of 2, 4, 8 and so on."""
    curve = result.extra.get("best_of_n", {}).get("overall", {})
    ways = [way for way in curve if way not in ("n", "best", "worst", "majority")]
    for way in ways:
        for n, value in zip(curve["n"], curve[way], strict=True):
            if n > 1 and n & (n - 1) == 0:
                yield f"best of {n}" + (f", {way}" if len(ways) > 1 else ""), value


def _iter_correlations(
    pairs: Sequence[tuple[ScoredItem, ScoredItem]],
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield Pearson's and Spearman's correlation of what both runs have."""
    from scipy import stats

    values = {
        # Steps after a maximum length have no reward, and tokenizers count differently.
        "rewards": [one for a, b in pairs for one in zip(a.rewards, b.rewards, strict=False)],
        "margins": [
            (a.get_margin(preference), b.get_margin(preference))
            for a, b in pairs
            for preference in a.item.preferences
        ],
    }
    for name, both in values.items():
        first, second = [float(a) for a, _ in both], [float(b) for _, b in both]
        if min(len(set(first)), len(set(second))) > 1:  # neither constant nor a single value
            pearson = stats.pearsonr(first, second).statistic
            yield name, (float(pearson), float(stats.spearmanr(first, second).statistic))


def _read_summary_next_to(path: Path) -> Mapping[str, Any]:
    """Return the summary of a folder or next to a file; empty if there is none."""
    folder = path if path.is_dir() else path.parent
    return read_summary(folder) if (folder / SUMMARY).is_file() else {}


def _find_items(path: Path, other: Path | None) -> Path:
    """Return the file of items of a path, or else that of the other run."""
    for given in (path, *([other] if other else [])):
        folder = given if given.is_dir() else given.parent
        for file in (folder / ITEMS, folder.parent / ITEMS):
            if file.is_file():
                return file
    raise EvaluationError(
        f"the items of {path} are not next to it; give their location with --data PATH (and "
        "--benchmark NAME)"
    )
