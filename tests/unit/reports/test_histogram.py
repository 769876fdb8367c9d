"""Histograms: every number is in one bar, memory stays bounded, and what is drawn adds up."""

from __future__ import annotations

import random
import re
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.reports.histogram import HistogramPlot, Series, render_histogram
from serve.reports.streaming_histogram import StreamingHistogram

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def spread_of(values: list[float]) -> StreamingHistogram:
    spread = StreamingHistogram()
    for value in values:
        spread.add(value)
    return spread


def drawn(*values: list[float], powers: bool = False) -> str:
    series = tuple(Series(f"<{n}>", spread_of(one)) for n, one in enumerate(values))
    return str(render_histogram(HistogramPlot("Rewards", "all", "reward", series, powers)))


@given(st.lists(FINITE, min_size=1, max_size=300), st.integers(1, 60))
def test_every_number_is_in_one_bar(values: list[float], most: int) -> None:
    spread = spread_of(values)
    bars = spread.compute_bars(min(values), max(values), most)
    assert sum(bars.counts) == len(values) == spread.count
    assert len(bars.counts) <= most + 2
    assert bars.edges[0] <= min(values) <= max(values) <= bars.edges[-1]
    assert (spread.smallest, spread.largest) == (min(values), max(values))
    assert spread.num_positive == sum(value > 0 for value in values)


def test_many_numbers_of_any_range_stay_small_and_right() -> None:
    chance = random.Random(1)
    values = [chance.gauss(3, 7) for _ in range(50_000)] + [-4e5, 1e6]
    spread = spread_of(values)
    assert len(spread._bins) <= 4_096
    shuffled = values.copy()
    chance.shuffle(shuffled)
    assert spread_of(shuffled)._bins == spread._bins
    ordered = sorted(values)
    for share in (0.05, 0.5, 0.95):
        assert spread.quantile(share) == pytest.approx(ordered[int(share * len(values))], abs=0.05)
    assert spread.mean == pytest.approx(statistics.fmean(values))


def test_counts_in_the_picture_add_up() -> None:
    counts = re.findall(r"<title>reward [^:]+: ([\d,]+)</title>", drawn([0.5, 1.5, 1.6, 2.5, 2.5]))
    assert sum(int(count.replace(",", "")) for count in counts) == 5


def test_two_series_share_bars_and_are_told_apart() -> None:
    chance = random.Random(2)
    values = [[chance.gauss(mean, 1) for _ in range(900)] for mean in (1, -1)]
    page = drawn(*values)
    columns = re.findall(r"<title>reward [^:]+: (\d+) &lt;0&gt;, (\d+) &lt;1&gt;</title>", page)
    assert [sum(map(int, column)) for column in zip(*columns, strict=True)] == [900, 900]
    assert "var(--s0)" in page
    assert "var(--s1)" in page
    assert page.count('class="key"') == 2


def test_what_is_far_away_does_not_flatten_the_rest() -> None:
    page = drawn([float(n % 50) for n in range(5_000)] + [1e9])
    assert "far away and not drawn: 1)" in page
    assert len(re.findall("<title>", page)) > 20


def test_powers_are_shown_as_what_they_stand_for() -> None:
    page = drawn([4.0, 5.0, 10.0], powers=True)
    assert ">1,024<" in page
    assert "mean" not in page


@pytest.mark.parametrize("values", [[0.0], [1.25, 1.25], [-3.0], [1e6], [1e-9, 2e-9]])
def test_few_numbers_can_be_drawn(values: list[float]) -> None:
    assert sum(int(n) for n in re.findall(r": (\d+)</title>", drawn(values))) == len(values)
