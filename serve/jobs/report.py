"""The page that `--report` writes: how rewards, margins and lengths of a job are spread.

What it is told of each row goes into a `StreamingHistogram` at once, so memory stays bounded. How a page is put
together and drawn is in `serve.reports`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from rm_core import Reward, ScoreError
from serve.jobs.atomic_io import write_atomically
from serve.jobs.record_schema import RecordKind
from serve.jobs.summary import Summary
from serve.jobs.summary_table import format_summary
from serve.reports.bars import Bar, BarRow, render_bars
from serve.reports.document import columns, render_document, section
from serve.reports.elements import key_value_table
from serve.reports.histogram import HistogramPlot, Series, render_histogram
from serve.reports.streaming_histogram import StreamingHistogram


class Report:
    """Collects what the page shows; a `RowSink`.

    Args:
        path: where the page goes.
        title: its heading, such as the name of the output.
    """

    def __init__(self, path: Path, title: str) -> None:
        self._path, self._title = path, title
        self._rewards, self._chosen, self._rejected = (
            StreamingHistogram(),
            StreamingHistogram(),
            StreamingHistogram(),
        )
        self._margins, self._leads, self._lengths = (
            StreamingHistogram(),
            StreamingHistogram(),
            StreamingHistogram(),
        )
        self._ties = 0
        self._truncated = self._warned = 0
        self._shapes: Counter[str] = Counter()

    def add(
        self,
        kind: RecordKind | None,
        results: Sequence[Reward | ScoreError],
        error: ScoreError | None,
    ) -> None:
        """See `RowSink`."""
        self._shapes[kind or "of no known shape"] += 1
        done = [result for result in results if isinstance(result, Reward)]
        for result in done:
            self._lengths.add(math.log2(max(1, result.num_tokens)))
            self._truncated += result.truncated
            self._warned += bool(result.warnings)
        if kind == "pair":
            self._add_pair(results)
            return
        for result in done:
            self._rewards.add(result.reward)
        if kind == "group" and len(done) > 1:
            second, first = sorted(result.reward for result in done)[-2:]
            self._leads.add(first - second)

    def write(self, summary: Summary) -> None:
        """See `RowSink`."""
        write_atomically(self._path, self.render(summary).encode(errors="replace"))

    def render(self, summary: Summary) -> str:
        """The page as it is.

        Args:
            summary: of the whole job.
        """
        tables = [
            section("What was done", key_value_table(format_summary(summary))),
            section("What there was", key_value_table(self._counts())),
        ]
        plots = [render_histogram(what) for what in self._histograms()]
        if summary.errors:
            plots.append(section("Errors by kind", _render_errors(summary)))
        return render_document(f"Rewards of {self._title}", [columns(tables), columns(plots)])

    def _add_pair(self, results: Sequence[Reward | ScoreError]) -> None:
        for result, spread in zip(results, (self._chosen, self._rejected), strict=False):
            if isinstance(result, Reward):
                spread.add(result.reward)
        match results:
            case [Reward() as chosen, Reward() as rejected]:
                self._margins.add(chosen.reward - rejected.reward)
                self._ties += chosen.reward == rejected.reward

    def _counts(self) -> Iterator[tuple[str, str]]:
        names = {"conversation": "conversations", "pair": "pairs", "group": "groups"}
        for shape, number in self._shapes.most_common():
            yield f"rows: {names.get(shape, shape)}", f"{number:,}"
        yield "conversations with a reward", f"{self._lengths.count:,}"
        if self._margins.count:
            share = self._margins.num_positive / self._margins.count
            yield "pairs with the chosen one ahead", f"{self._margins.num_positive:,} ({share:.2%})"
            yield "pairs with equal rewards", f"{self._ties:,}"
        if self._truncated:
            yield "truncated conversations", f"{self._truncated:,}"
        if self._warned:
            yield "conversations with a warning", f"{self._warned:,}"

    def _histograms(self) -> Iterator[HistogramPlot]:
        if self._rewards.count:
            yield HistogramPlot(
                "Rewards",
                "of conversations, and of the responses of groups",
                "reward",
                (Series("reward", self._rewards),),
            )
        if self._chosen.count or self._rejected.count:
            yield HistogramPlot(
                "Rewards of pairs",
                "the chosen ones and the rejected ones",
                "reward",
                (Series("chosen", self._chosen), Series("rejected", self._rejected)),
            )
        if self._margins.count:
            yield HistogramPlot(
                "Margins of pairs",
                "reward of the chosen one, less that of the rejected one: below 0 they disagree",
                "margin",
                (Series("margin", self._margins),),
            )
        if self._leads.count:
            yield HistogramPlot(
                "Leads in groups",
                "by how much the best response of a group is ahead of the second",
                "lead",
                (Series("lead", self._leads),),
            )
        if self._lengths.count:
            yield HistogramPlot(
                "Lengths",
                "tokens of a conversation; each step of the scale is twice as long",
                "tokens",
                (Series("tokens", self._lengths),),
                is_log2=True,
            )


def _render_errors(summary: Summary) -> Markup:
    kinds = summary.errors.most_common()
    rows = [BarRow(kind, (Bar(number, f"{number:,}"),)) for kind, number in kinds]
    return render_bars("Errors by kind", rows)
