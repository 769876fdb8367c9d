"""Histograms: each number is in one bar, memory is bounded, and the plotted counts add up."""

from __future__ import annotations

import random
import re
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.reports.histogram import StreamingHistogram, build_histogram
from serve.reports.page import get_environment

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def collect(values: list[float]) -> StreamingHistogram:
    histogram = StreamingHistogram()
    for value in values:
        histogram.add(value)
    return histogram


def render(*values: list[float], is_log2: bool = False) -> str:
    series = {f"<{number}>": collect(one) for number, one in enumerate(values)}
    plot = build_histogram("Rewards", "all", "reward", series, is_log2=is_log2)
    plots: Any = get_environment().get_template("plots.html.j2").module
    return str(plots.histogram(plot))


@given(st.lists(FINITE, min_size=1, max_size=300), st.integers(1, 60))
def test_each_number_is_in_exactly_one_bar(values: list[float], max_bars: int) -> None:
    histogram = collect(values)
    bars = histogram.compute_bars(min(values), max(values), max_bars)
    assert sum(bars.counts) == len(values) == histogram.count
    assert len(bars.counts) <= max_bars + 2
    assert bars.edges[0] <= min(values) <= max(values) <= bars.edges[-1]
    assert (histogram.smallest, histogram.largest) == (min(values), max(values))
    assert histogram.num_positive == sum(value > 0 for value in values)


def test_many_numbers_keep_bounded_memory_and_exact_bins() -> None:
    rng = random.Random(1)
    values = [rng.gauss(3, 7) for _ in range(50_000)] + [-4e5, 1e6]
    histogram = collect(values)
    assert len(histogram._bins) <= 4_096
    shuffled = values.copy()
    rng.shuffle(shuffled)
    assert collect(shuffled)._bins == histogram._bins
    ordered = sorted(values)
    for share in (0.05, 0.5, 0.95):
        expected = ordered[int(share * len(values))]
        assert histogram.quantile(share) == pytest.approx(expected, abs=0.05)
    assert histogram.mean == pytest.approx(statistics.fmean(values))


def test_tooltip_counts_add_up() -> None:
    counts = re.findall(r"<title>reward [^:]+: ([\d,]+)</title>", render([0.5, 1.5, 1.6, 2.5, 2.5]))
    assert sum(int(count.replace(",", "")) for count in counts) == 5


def test_two_series_share_bars_with_distinct_colors() -> None:
    rng = random.Random(2)
    values = [[rng.gauss(mean, 1) for _ in range(900)] for mean in (1, -1)]
    page = render(*values)
    columns = re.findall(r"<title>reward [^:]+: (\d+) &lt;0&gt;, (\d+) &lt;1&gt;</title>", page)
    assert [sum(map(int, column)) for column in zip(*columns, strict=True)] == [900, 900]
    assert page.count('class="outline s0"') == page.count('class="outline s1"') == 1
    assert page.count('class="key s0"') == page.count('class="key s1"') == 1


def test_outliers_are_not_drawn() -> None:
    page = render([float(n % 50) for n in range(5_000)] + [1e9])
    assert "outliers that are not drawn: 1)" in page
    assert len(re.findall("<title>", page)) > 20


def test_log2_axis_shows_powers() -> None:
    page = render([4.0, 5.0, 10.0], is_log2=True)
    assert ">1,024<" in page
    assert "mean" not in page


@pytest.mark.parametrize("values", [[0.0], [1.25, 1.25], [-3.0], [1e6], [1e-9, 2e-9]])
def test_few_numbers_are_drawn(values: list[float]) -> None:
    assert sum(int(n) for n in re.findall(r": (\d+)</title>", render(values))) == len(values)
