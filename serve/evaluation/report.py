"""The HTML report of one benchmark, for one model or for several models side by side.

`report.html.j2` is the page. This module computes what it shows: intervals, margins of pairs,
accuracy by margin and length, the worst mistakes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rm_core.benchmarks.base import Preference, ScoredItem, SubsetScore
from rm_core.inputs.conversations import get_text
from serve.evaluation.images import describe_content
from serve.evaluation.result import Evaluation
from serve.evaluation.statistics import (
    Bin,
    Interval,
    Intervals,
    bin_accuracy,
    compute_calibration,
    compute_intervals,
    quantile_edges,
    wilson,
)
from serve.jobs.atomic_io import write_atomically
from serve.jobs.summary import format_summary
from serve.reports.format import NOTHING, format_number, format_percent
from serve.reports.histogram import HistogramPlot, StreamingHistogram, build_histogram
from serve.reports.page import render_page
from serve.reports.plots import Axis, Bar, BarRow, Frame, Point, build_percent_axis

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_CURVE_HEIGHT = 250
_LENGTH_BINS = 4  # on each side of 0
_PROMPT_BINS = 8
_MAX_MISTAKES = 20
_NO_INTERVAL = "too few items for a 95% interval"
# Metrics that are plotted instead of listed.
_PLOT_KEYS = ("matrices", "best_of_n")
_BOUNDS = ("best", "worst")


class Pair(NamedTuple):
    """A pair of responses of an item with a known better one.

    Attributes:
        scored_item: the item with its rewards.
        preference: indices of the better and the worse response.
        margin: reward of the better response minus reward of the worse response.
        length_difference: characters of the better response minus those of the worse response.
        prompt_length: characters of the prompt's messages.
    """

    scored_item: ScoredItem
    preference: Preference
    margin: float
    length_difference: int
    prompt_length: int

    @property
    def correct(self) -> float:
        """1 if the better response has the higher reward, else 0."""
        return float(self.margin > 0)


class CurvePlot(NamedTuple):
    """A plot of lines, such as one for each model.

    Attributes:
        frame: axes of the plot.
        lines: points of each line, from left to right.
        guides: dashed lines, each a list of points.
    """

    frame: Frame
    lines: Sequence[Sequence[Point]]
    guides: Sequence[Sequence[tuple[float, float]]] = ()


class RangePlot(NamedTuple):
    """Accuracy of each model by ranges of a length.

    Attributes:
        curves: the plot, in which all ranges have equal width.
        ranges: lower and upper edges of the ranges.
        bins: pairs of each range, by model.
    """

    curves: CurvePlot
    ranges: Sequence[tuple[float, float]]
    bins: Sequence[Sequence[Bin]]


class BestOfNPlot(NamedTuple):
    """Curves of best of n.

    Attributes:
        curves: the plot.
        names: name of each line.
        sizes: values of n.
        rows: values by name of the line or of the bound, for the values of n that it has.
    """

    curves: CurvePlot
    names: Sequence[str]
    sizes: Sequence[int]
    rows: Mapping[str, Sequence[float]]


def write_report(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write the report; equal evaluations give equal bytes.

    Args:
        path: file to write, atomically.
        evaluations: at least one evaluation, all of one benchmark, in display order.
    """
    if any(one.benchmark.name != evaluations[0].benchmark.name for one in evaluations):
        raise ValueError("all evaluations of a report must be of one benchmark")
    intervals = [
        compute_intervals(one.benchmark, one.scored_items, one.result) for one in evaluations
    ]
    pairs = [build_pairs(one.scored_items) for one in evaluations]
    models = [one.model for one in evaluations]
    section_names = _merge_names(one.result.sections for one in evaluations)
    scores = [_list_scores(one, section_names) for one in evaluations]
    metrics = [dict(_iter_metrics(one.result.extra)) for one in evaluations]
    metric_names = _merge_names(metrics)
    page = render_page(
        _TEMPLATE,
        title=evaluations[0].benchmark.title,
        about=models[0] if len(models) == 1 else f"{len(models)} models",
        evaluations=evaluations,
        models=models,
        short_models=shorten_names(models),
        intervals=intervals,
        section_names=section_names,
        scores=scores,
        best_scores=[max(value or 0.0 for value in column) for column in zip(*scores, strict=True)],
        section_bars=_build_bars(
            [one.result.sections for one in evaluations], [one.sections for one in intervals]
        ),
        subset_bars=_build_subset_bars(evaluations, intervals),
        metrics=metrics,
        # A name with two prefixes belongs to a single section.
        metric_names=[name for name in metric_names if name.count(": ") < 2],
        section_metric_names=[name for name in metric_names if name.count(": ") > 1],
        margins=_build_margins(models, pairs),
        calibrations=[compute_calibration(pair.margin for pair in one) for one in pairs],
        calibration=_build_calibration(pairs),
        response_lengths=_build_response_lengths(pairs),
        accuracy_by_length=[_compare_lengths(one) for one in pairs],
        prompt_lengths=_build_prompt_lengths(pairs),
        provenance_names=_merge_names(one.provenance for one in evaluations),
        best_of_n=dict(_iter_best_of_n(evaluations)),
        mistakes=[_find_worst_pairs(one) for one in pairs],
        max_mistakes=_MAX_MISTAKES,
        format_interval=_format_interval,
        no_interval=_NO_INTERVAL,
        format_metric=_format_metric,
        format_value=format_value,
        format_summary=format_summary,
        describe_content=describe_content,
        get_text=get_text,
    )
    # The texts of a benchmark may contain lone surrogates, which UTF-8 cannot encode.
    write_atomically(path, page.encode(errors="replace"))


def build_pairs(scored_items: Iterable[ScoredItem]) -> list[Pair]:
    """Return all pairs, in the order of the items."""
    pairs = []
    for one in scored_items:
        item = one.item
        prompt_length = sum(len(get_text(message["content"])) for message in item.prompt)
        for preference in item.preferences:
            better, worse = preference
            length_difference = len(item.texts[better]) - len(item.texts[worse])
            margin = one.get_margin(preference)
            pairs.append(Pair(one, preference, margin, length_difference, prompt_length))
    return pairs


def shorten_names(names: Sequence[str]) -> list[str]:
    """Return the last component of each name, or the names if components are equal."""
    short = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _list_scores(evaluation: Evaluation, section_names: Iterable[str]) -> list[float | None]:
    """Return the overall score and those of sections."""
    sections = evaluation.result.sections
    scores = [sections[name].score if name in sections else None for name in section_names]
    return [evaluation.result.overall, *scores]


def _merge_names(groups: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))


def _build_subset_bars(
    evaluations: Sequence[Evaluation], intervals: Sequence[Intervals]
) -> list[BarRow]:
    if all(one.result.subsets == one.result.sections for one in evaluations):
        return []
    return _build_bars(
        [one.result.subsets for one in evaluations], [one.subsets for one in intervals]
    )


def _build_bars(
    scores: Sequence[Mapping[str, SubsetScore]], intervals: Sequence[Mapping[str, Interval]]
) -> list[BarRow]:
    return [
        BarRow(
            name,
            [
                _build_bar(name, by_name[name], interval.get(name)) if name in by_name else None
                for by_name, interval in zip(scores, intervals, strict=True)
            ],
        )
        for name in _merge_names(scores)
    ]


def _build_bar(name: str, subset: SubsetScore, interval: Interval | None) -> Bar:
    items = f"{subset.num_items:,} items"
    if subset.num_expected not in (None, subset.num_items):
        items = f"{subset.num_items:,} of {subset.num_expected:,} items"
    about_interval = f"95% interval {_format_interval(interval)}" if interval else _NO_INTERVAL
    tooltip = f"{name}: {format_percent(subset.score)}, {about_interval}, {items}"
    return Bar(subset.score, format_percent(subset.score, 1), interval, tooltip)


def _build_margins(models: Sequence[str], pairs: Sequence[Sequence[Pair]]) -> HistogramPlot | None:
    if not any(pairs):
        return None
    series = {}
    for name, one in zip(models if len(models) > 1 else ["margin"], pairs, strict=True):
        series[name] = StreamingHistogram()
        for pair in one:
            series[name].add(pair.margin)
    about = (
        "reward of the better response minus reward of the worse response; the model is wrong at "
        "0 and below"
    )
    return build_histogram("Margins", about, "margin", series)


def _build_calibration(pairs: Sequence[Sequence[Pair]]) -> CurvePlot | None:
    if not any(pairs):
        return None
    calibrations = [compute_calibration(pair.margin for pair in one) for one in pairs]
    lines = [
        [
            _build_point(one, one.mean, f"{one.low:.0%} to {one.high:.0%} ")
            for one in (calibration.bins if calibration else ())
        ]
        for calibration in calibrations
    ]
    ticks = [(n / 10, f"{n * 10}%") for n in range(5, 11)]
    frame = Frame(
        Axis("sigmoid of the margin", 0.5, 1.0, ticks),
        build_percent_axis("right", min(0.5, _find_lowest(lines))),
        _CURVE_HEIGHT,
    )
    return CurvePlot(frame, lines, [[(0.5, 0.5), (1.0, 1.0)]])


def _build_response_lengths(pairs: Sequence[Sequence[Pair]]) -> RangePlot | None:
    differences = [pair.length_difference for one in pairs for pair in one]
    # Equally many pairs in each range, and 0 between the two sides.
    negative = [number for number in differences if number < 0]
    positive = [number for number in differences if number > 0]
    edges = quantile_edges(negative, _LENGTH_BINS)[:-1] if negative else []
    edges.append(0.0)
    edges += quantile_edges(positive, _LENGTH_BINS)[1:] if positive else []
    edges = edges if len(edges) > 1 else [0.0, 1.0]
    values = [[(pair.length_difference, pair.correct) for pair in one] for one in pairs]
    return _build_ranges(values, edges, "characters: better minus worse")


def _compare_lengths(pairs: Sequence[Pair]) -> list[float | None]:
    """Return the accuracy where the better response is longer, and where it is shorter."""
    longer = [pair.correct for pair in pairs if pair.length_difference > 0]
    shorter = [pair.correct for pair in pairs if pair.length_difference < 0]
    return [sum(one) / len(one) if one else None for one in (longer, shorter)]


def _build_prompt_lengths(pairs: Sequence[Sequence[Pair]]) -> RangePlot | None:
    edges = quantile_edges([pair.prompt_length for one in pairs for pair in one], _PROMPT_BINS)
    values = [[(pair.prompt_length, pair.correct) for pair in one] for one in pairs]
    return _build_ranges(values, edges, "characters of the prompt")


def _build_ranges(
    values: Sequence[Sequence[tuple[float, float]]], edges: Sequence[float], title: str
) -> RangePlot | None:
    """Build the plot of lengths and correctness: ranges of equal width, since few are huge."""
    if not any(values):
        return None
    bins = [bin_accuracy(one, edges) for one in values]
    lines = [
        [
            _build_point(one, index + 0.5, f"{_format_range(one.low, one.high)} characters")
            for index, one in enumerate(by_model)
            if one.num_pairs
        ]
        for by_model in bins
    ]
    ticks = [(float(index), _format_compact(edge)) for index, edge in enumerate(edges)]
    y_axis = build_percent_axis("right", _find_lowest(lines))
    zeros = [float(index) for index, edge in enumerate(edges) if edge == 0 and index]
    curves = CurvePlot(
        Frame(Axis(title, 0.0, len(edges) - 1.0, ticks), y_axis, _CURVE_HEIGHT),
        lines,
        [[(x, y_axis.start), (x, y_axis.end)] for x in zeros],
    )
    return RangePlot(curves, list(pairwise(edges)), bins)


def _build_point(one: Bin, x: float, name: str) -> Point:
    interval = wilson(one.accuracy * one.num_pairs, one.num_pairs)
    tooltip = f"{name}: {format_percent(one.accuracy)} of {one.num_pairs:,} pairs"
    return Point(x, one.accuracy, interval, tooltip)


def _find_lowest(lines: Iterable[Iterable[Point]]) -> float:
    return min(point.interval[0] for line in lines for point in line if point.interval)


def _iter_best_of_n(evaluations: Sequence[Evaluation]) -> Iterator[tuple[str, BestOfNPlot]]:
    """Yield the name of each set that has curves, with its plot."""
    models = shorten_names([one.model for one in evaluations])
    by_model = [one.result.extra.get("best_of_n", {}) for one in evaluations]
    for name in _merge_names(by_model):
        curves = {
            model: sets[name] for model, sets in zip(models, by_model, strict=True) if name in sets
        }
        longest = max(curves.values(), key=lambda curve: len(curve["n"]))
        sizes: list[int] = longest["n"]
        if not sizes:
            continue
        values = dict(_iter_curves(curves))
        lines = [
            [
                Point(index, value, None, f"best of {n}: {format_percent(value)}")
                for index, (n, value) in enumerate(zip(sizes, line, strict=False))
            ]
            for line in values.values()
        ]
        guides = [[*enumerate(longest[bound])] for bound in _BOUNDS]
        lowest = min(*longest["worst"], *(point.y for line in lines for point in line))
        ticks = [(float(index), str(n)) for index, n in enumerate(sizes)]
        x_axis = Axis("n", -0.3, len(sizes) - 0.7, ticks)
        frame = Frame(x_axis, build_percent_axis("truth", lowest), _CURVE_HEIGHT)
        rows = values | {f"{bound} response": longest[bound] for bound in _BOUNDS}
        yield name, BestOfNPlot(CurvePlot(frame, lines, guides), list(values), sizes, rows)


def _iter_curves(
    curves: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, Sequence[float]]]:
    """Yield the name and the values of each line: of a model, of a way to select, or of both."""
    for model, curve in curves.items():
        ways = [way for way in curve if way not in ("n", *_BOUNDS)]
        for way in ways:
            if len(ways) == 1:
                yield model if len(curves) > 1 else "truth", curve[way]
            else:
                yield f"{model}: {way}" if len(curves) > 1 else way, curve[way]


def _find_worst_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Return the worst wrong pair of each item, largest wrong margins first."""
    worst: dict[tuple[str, str], Pair] = {}
    for pair in pairs:
        key = pair.scored_item.item.key
        if pair.margin <= 0 and (key not in worst or pair.margin < worst[key].margin):
            worst[key] = pair
    # The sort is stable: equal margins keep the order of the data.
    return sorted(worst.values(), key=lambda pair: pair.margin)


def _iter_metrics(extra: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the further metrics; prefixes of a name are separated by colons."""
    for name, value in extra.items():
        if not prefix and name in _PLOT_KEYS:
            continue
        if isinstance(value, Mapping):
            yield from _iter_metrics(value, f"{prefix}{name}: ")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}".replace("_", " "), value


def _format_metric(metrics: Mapping[str, float], name: str) -> str:
    """Format a further metric: fractions in percent, other values unscaled."""
    value = metrics.get(name)
    if isinstance(value, int):
        return f"{value:,}"
    if value is None or name.startswith(("difficulty", "metrics", "mean", "accuracy")):
        return format_percent(value)
    return format_number(value, ".4f")


def _format_interval(interval: Interval) -> str:
    """Format an interval of fractions in percent, such as 93.1 to 95.2."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _format_range(low: float, high: float) -> str:
    return f"{format_number(low, ',.0f')} to {format_number(high, ',.0f')}"


def _format_compact(value: float) -> str:
    """Format a number of characters compactly, such as 2.3k."""
    if abs(value) < 1_000:
        return format_number(value, ".0f")
    return format_number(value / 1_000, ".1f" if abs(value) < 10_000 else ".0f") + "k"


def format_value(value: Any) -> str:
    """Format a value of the provenance."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_number(value, "g")
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {format_value(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(format_value(one) for one in value)
    return str(value)
