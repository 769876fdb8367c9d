"""The HTML report of a job: correct numbers, and no external resources."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

from html_pages import check_page

from rm_core import Reward, ScoreError
from serve.jobs.report import Report
from serve.jobs.row_results import RowResults
from serve.jobs.summary import Summary

BAD = ScoreError("conversation_too_long", "9 tokens, 8 are allowed")


def reward(value: float, num_tokens: int = 10) -> Reward:
    return Reward(value, num_tokens)


def fill_report(path: Path) -> tuple[Report, Summary]:
    report, rng = Report(path, "scored <b>.jsonl"), random.Random(0)
    for _ in range(3_000):
        chosen, rejected = rng.gauss(2, 3), rng.gauss(-1, 3)
        report.add(RowResults("pair", [reward(chosen, rng.randint(10, 4_000)), reward(rejected)]))
    for _ in range(500):
        report.add(RowResults("conversation", [reward(rng.gauss(0, 5))]))
        report.add(RowResults("group", [reward(rng.gauss(0, 5)) for _ in range(4)]))
    report.add(RowResults("pair", [reward(1.5), BAD]))
    report.add(RowResults(None, error=ScoreError("invalid_json", "no JSON")))
    errors = Counter({"conversation_too_long": 1, "invalid_json": 1})
    return report, Summary(num_rows=4_002, errors=errors, num_tokens=1_000, seconds=2.0)


def test_report_shows_counts_and_plots(tmp_path: Path) -> None:
    report, summary = fill_report(tmp_path / "report.html")
    report.write(summary)
    page = (tmp_path / "report.html").read_text()
    text = re.sub(r"<[^>]+>", " ", page)
    for expected in (
        "Rewards of scored &lt;b&gt;.jsonl", "rows: pairs 3,001", "rows: groups 500",
        "rows: unknown shape 1", "pairs with chosen ahead", "Margins of pairs",
        "Leads in groups", "Lengths", "Errors by code", "conversation_too_long 1",
    ):  # fmt: skip
        assert expected in re.sub(r"\s+", " ", text), expected
    # Five histograms, and the bars of errors.
    assert page.count("<svg") == 6
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_equal_jobs_have_equal_self_contained_reports(tmp_path: Path) -> None:
    report, summary = fill_report(tmp_path / "report.html")
    page = report.render(summary)
    check_page(page)
    again, _ = fill_report(tmp_path / "report.html")
    assert page == again.render(summary)


def test_job_without_rewards_has_report(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.html", "nothing.jsonl")
    report.add(RowResults("conversation", [BAD]))
    page = report.render(Summary(num_rows=1, errors=Counter({BAD.code: 1})))
    assert page.count("<svg") == 1
    assert "Errors by code" in page
    check_page(page)
