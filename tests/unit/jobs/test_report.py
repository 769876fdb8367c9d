"""The page with how rewards are spread: its numbers are right, and it needs nothing else."""

from __future__ import annotations

import random
import re
import statistics
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_core import Reward, ScoreError
from serve.jobs.page import Chart, Series, chart
from serve.jobs.report import Report
from serve.jobs.spread import Spread
from serve.jobs.summary import Summary

BAD = ScoreError("conversation_too_long", "9 tokens, 8 are allowed")
FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def spread_of(values: list[float]) -> Spread:
    spread = Spread()
    for value in values:
        spread.add(value)
    return spread


def reward(value: float, num_tokens: int = 10) -> Reward:
    return Reward(value, num_tokens)


def filled(path: Path) -> tuple[Report, Summary]:
    report, chance = Report(path, "scored <b>.jsonl"), random.Random(0)
    for _ in range(3_000):
        chosen, rejected = chance.gauss(2, 3), chance.gauss(-1, 3)
        report.add("pair", [reward(chosen, chance.randint(10, 4_000)), reward(rejected)], None)
    for _ in range(500):
        report.add("conversation", [reward(chance.gauss(0, 5))], None)
        report.add("group", [reward(chance.gauss(0, 5)) for _ in range(4)], None)
    report.add("pair", [reward(1.5), BAD], BAD)
    report.add(None, [], ScoreError("invalid_json", "no JSON"))
    errors = Counter({"conversation_too_long": 1, "invalid_json": 1})
    return report, Summary(num_rows=4_002, errors=errors, num_tokens=1_000, seconds=2.0)


@given(st.lists(FINITE, min_size=1, max_size=300), st.integers(1, 60))
def test_every_number_is_in_one_bar(values: list[float], most: int) -> None:
    spread = spread_of(values)
    bars = spread.bars(min(values), max(values), most)
    assert sum(bars.counts) == len(values) == spread.count
    assert len(bars.counts) <= most + 2
    assert bars.start <= min(values) <= max(values) <= bars.end
    assert (spread.smallest, spread.largest) == (min(values), max(values))
    assert spread.positive == sum(value > 0 for value in values)


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


def test_the_page_says_what_was_there(tmp_path: Path) -> None:
    report, summary = filled(tmp_path / "report.html")
    report.write(summary)
    page = (tmp_path / "report.html").read_text()
    text = re.sub(r"<[^>]+>", " ", page)
    for said in (
        "Rewards of scored &lt;b&gt;.jsonl", "rows: pairs 3,001", "rows: groups 500",
        "rows: of no known shape 1", "pairs with the chosen one ahead", "Margins of pairs",
        "Leads in groups", "Lengths", "Errors by kind", "conversation_too_long 1",
    ):  # fmt: skip
        assert said in re.sub(r"\s+", " ", text), said
    # All 8,501 rewards are drawn, or said to be outside.
    assert page.count("<svg") == 5
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    report, summary = filled(tmp_path / "report.html")
    page = report.page(summary)
    assert not re.search(r"https?://|<script|<link|@import|url\(|<img", page)
    assert "prefers-color-scheme: dark" in page
    colours = re.findall(r"#[0-9a-f]{3,8}\b", page.split("* { box-sizing")[1])
    assert not colours, "colours are the page's variables alone"
    balanced(page)
    assert page == report.page(summary)


def balanced(page: str) -> None:
    open_tags: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag != "meta":
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Parser().feed(page)
    assert not open_tags


def test_counts_in_the_picture_add_up() -> None:
    spread = spread_of([0.5, 1.5, 1.6, 2.5, 2.5])
    page = chart(Chart("Rewards", "all", "reward", (Series("reward", spread),)), [("",)])
    counts = re.findall(r"<title>reward [^:]+: ([\d,]+)</title>", page)
    assert sum(map(int, counts)) == 5


@pytest.mark.parametrize("values", [[0.0], [1.25, 1.25], [-3.0]])
def test_a_single_number_can_be_drawn(values: list[float]) -> None:
    page = chart(Chart("Rewards", "all", "reward", (Series("reward", spread_of(values)),)), [("",)])
    assert f": {len(values)}</title>" in page


def test_a_job_without_rewards_has_a_page(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.html", "nothing.jsonl")
    report.add("conversation", [BAD], BAD)
    page = report.page(Summary(num_rows=1, errors=Counter({BAD.code: 1})))
    assert "<svg" not in page
    assert "Errors by kind" in page
    balanced(page)
