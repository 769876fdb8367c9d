"""The page that `--report` writes: how rewards, margins and lengths of a job are spread.

One file that needs nothing else: no script, no font, no picture from anywhere. Bars are drawn here,
as SVG whose colours are the page's own variables, so that it is readable in light and dark; numbers
beside them are HTML, so that they keep their size on a narrow screen. What it is told of each row
goes into `serve.jobs.spread` at once, so memory stays bounded. The page itself is put together in
`serve.jobs.page`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rm_core import Reward, ScoreError
from serve.jobs.durable import write_durably
from serve.jobs.page import Chart, Series, bar_list, chart, document, table
from serve.jobs.records import Shape
from serve.jobs.spread import Spread
from serve.jobs.summary import Summary
from serve.jobs.table import summary_lines

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class _Section:
    """A histogram, and what to say about it."""

    title: str
    about: str
    axis: str
    series: tuple[Series, ...]
    powers: bool = False


class Report:
    """Collects what the page shows; a `RowSink`.

    Args:
        path: where the page goes.
        title: its heading, such as the name of the output.
    """

    def __init__(self, path: Path, title: str) -> None:
        self._path, self._title = path, title
        self._rewards, self._chosen, self._rejected = Spread(), Spread(), Spread()
        self._margins, self._leads, self._lengths = Spread(), Spread(), Spread()
        self._ties = 0
        self._truncated = self._warned = 0
        self._shapes: Counter[str] = Counter()

    def add(
        self,
        shape: Shape | None,
        results: Sequence[Reward | ScoreError],
        error: ScoreError | None,
    ) -> None:
        """See `RowSink`."""
        self._shapes[shape or "of no known shape"] += 1
        done = [result for result in results if isinstance(result, Reward)]
        for result in done:
            self._lengths.add(math.log2(max(1, result.num_tokens)))
            self._truncated += result.truncated
            self._warned += bool(result.warnings)
        if shape == "pair":
            self._add_pair(results)
            return
        for result in done:
            self._rewards.add(result.reward)
        if shape == "group" and len(done) > 1:
            second, first = sorted(result.reward for result in done)[-2:]
            self._leads.add(first - second)

    def write(self, summary: Summary) -> None:
        """See `RowSink`."""
        write_durably(self._path, self.page(summary).encode())

    def page(self, summary: Summary) -> str:
        """The page as it is.

        Args:
            summary: of the whole job.
        """
        parts = [
            table("What was done", list(summary_lines(summary))),
            table("What there was", list(self._counts())),
            *(_drawn(section) for section in self._sections()),
        ]
        if summary.errors:
            parts.append(bar_list("Errors by kind", summary.errors.most_common()))
        return document(f"Rewards of {self._title}", parts)

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
            share = self._margins.positive / self._margins.count
            yield "pairs with the chosen one ahead", f"{self._margins.positive:,} ({share:.2%})"
            yield "pairs with equal rewards", f"{self._ties:,}"
        if self._truncated:
            yield "truncated conversations", f"{self._truncated:,}"
        if self._warned:
            yield "conversations with a warning", f"{self._warned:,}"

    def _sections(self) -> Iterator[_Section]:
        if self._rewards.count:
            yield _Section(
                "Rewards",
                "of conversations, and of the responses of groups",
                "reward",
                (Series("reward", self._rewards),),
            )
        if self._chosen.count or self._rejected.count:
            yield _Section(
                "Rewards of pairs",
                "the chosen ones and the rejected ones",
                "reward",
                (Series("chosen", self._chosen), Series("rejected", self._rejected)),
            )
        if self._margins.count:
            yield _Section(
                "Margins of pairs",
                "reward of the chosen one, less that of the rejected one: below 0 they disagree",
                "margin",
                (Series("margin", self._margins),),
            )
        if self._leads.count:
            yield _Section(
                "Leads in groups",
                "by how much the best response of a group is ahead of the second",
                "lead",
                (Series("lead", self._leads),),
            )
        if self._lengths.count:
            yield _Section(
                "Lengths",
                "tokens of a conversation; each step of the scale is twice as long",
                "tokens",
                (Series("tokens", self._lengths),),
                powers=True,
            )


def _drawn(section: _Section) -> str:
    rows = [("quantiles", *(f"{share:.0%}" for share in _QUANTILES), "mean")]
    for series in section.series:
        spread = series.spread
        if not spread.count:
            continue
        values = [spread.quantile(share) for share in _QUANTILES]
        # The mean of logarithms is no mean of what they stand for.
        mean = "" if section.powers else _number(spread.mean)
        texts = [f"{2**v:,.0f}" if section.powers else _number(v) for v in values]
        rows.append((series.name, *texts, mean))
    if section.powers:
        rows = [row[:-1] for row in rows]
    return chart(
        Chart(section.title, section.about, section.axis, section.series, section.powers), rows
    )


def _number(value: float) -> str:
    return f"{value:,.3f}"
