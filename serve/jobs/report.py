"""The HTML report of `--report`: distributions of a job's rewards, margins and lengths.

Every row goes into `StreamingHistogram`s at once, so memory stays bounded. `serve.reports` renders
the page and its plots.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rm_core import Reward
from serve.jobs.atomic_io import write_atomically
from serve.jobs.row_results import Result, RowResults
from serve.jobs.summary import Summary, format_summary
from serve.reports.histogram import HistogramPlot, StreamingHistogram, build_histogram
from serve.reports.page import render_page
from serve.reports.plots import Bar, BarRow


class Report:
    """Collects the content of the report, row by row; `title` is its heading."""

    def __init__(self, path: Path, title: str) -> None:
        self._path, self._title = path, title
        self._rewards, self._chosen, self._rejected = (StreamingHistogram() for _ in range(3))
        self._margins, self._leads, self._lengths = (StreamingHistogram() for _ in range(3))
        self._ties = self._consistent = self._verdicts = 0
        self._truncated = self._warned = 0
        self._kinds: Counter[str] = Counter()

    def add(self, row: RowResults) -> None:
        """Receive the next row."""
        self._kinds[row.kind or "unknown shape"] += 1
        rewards = [result for result in row.results if isinstance(result, Reward)]
        for result in rewards:
            self._lengths.add(math.log2(max(1, result.num_tokens)))
            self._truncated += result.truncated
            self._warned += bool(result.warnings)
        if verdict := row.verdict:
            self._add_margin(verdict.margin)
            self._verdicts += verdict.is_consistent is not None
            self._consistent += verdict.is_consistent is True
        if row.kind == "pair":
            self._add_pair(row.results)
            return
        numbers = [reward for reward in row.rewards if reward is not None]
        for number in numbers:
            self._rewards.add(number)
        if row.kind in ("group", "judged_group") and len(numbers) > 1:
            second, first = sorted(numbers)[-2:]
            self._leads.add(first - second)

    def write(self, summary: Summary) -> None:
        """Write the report, after all rows."""
        write_atomically(self._path, self.render(summary).encode(errors="replace"))

    def render(self, summary: Summary) -> str:
        """Return the report as HTML."""
        errors = [
            BarRow(code, [Bar(count, f"{count:,}")]) for code, count in summary.errors.most_common()
        ]
        return render_page(
            Path(__file__).with_name("report.html.j2"),
            title=f"Rewards of {self._title}",
            about="",
            job=format_summary(summary),
            input=self._counts(),
            histograms=self._histograms(),
            errors=errors,
        )

    def _add_pair(self, results: Sequence[Result]) -> None:
        for result, histogram in zip(results, (self._chosen, self._rejected), strict=False):
            if isinstance(result, Reward):
                histogram.add(result.reward)
        match results:
            case [Reward() as chosen, Reward() as rejected]:
                self._add_margin(chosen.reward - rejected.reward)

    def _add_margin(self, margin: float) -> None:
        self._margins.add(margin)
        self._ties += margin == 0

    def _counts(self) -> Iterator[tuple[str, str]]:
        names = {"conversation": "conversations", "pair": "pairs", "group": "groups"}
        names |= {"judged_pair": "pairs", "judged_group": "groups"}
        for kind, count in self._kinds.most_common():
            yield f"rows: {names.get(kind, kind)}", f"{count:,}"
        yield "conversations with a reward", f"{self._lengths.count:,}"
        if self._margins.count:
            share = self._margins.num_positive / self._margins.count
            yield "pairs with chosen ahead", f"{self._margins.num_positive:,} ({share:.2%})"
            yield "pairs with equal rewards", f"{self._ties:,}"
        if self._verdicts:
            share = self._consistent / self._verdicts
            yield (
                "pairs with the same answer ahead in both orders",
                f"{self._consistent:,} ({share:.2%})",
            )
        if self._truncated:
            yield "truncated conversations", f"{self._truncated:,}"
        if self._warned:
            yield "conversations with a warning", f"{self._warned:,}"

    def _histograms(self) -> Iterator[HistogramPlot]:
        if self._rewards.count:
            yield build_histogram(
                "Rewards",
                "rewards of conversations and of responses in groups",
                "reward",
                {"reward": self._rewards},
            )
        if self._chosen.count or self._rejected.count:
            yield build_histogram(
                "Rewards of pairs",
                "rewards of chosen and of rejected answers",
                "reward",
                {"chosen": self._chosen, "rejected": self._rejected},
            )
        if self._margins.count:
            yield build_histogram(
                "Margins of pairs",
                "reward of chosen minus reward of rejected, or a judge's log-odds that chosen is "
                "better: below 0, the model prefers rejected",
                "margin",
                {"margin": self._margins},
            )
        if self._leads.count:
            yield build_histogram(
                "Leads in groups",
                "reward of a group's best response minus reward of its second best",
                "lead",
                {"lead": self._leads},
            )
        if self._lengths.count:
            yield build_histogram(
                "Lengths",
                "tokens per conversation; each step of the axis doubles the length",
                "tokens",
                {"tokens": self._lengths},
                is_log2=True,
            )
