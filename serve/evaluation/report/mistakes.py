"""The worst mistakes with their texts folded away, and the items that could not be scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from serve.evaluation.report.pairs import Pair, content_of
from serve.evaluation.result import Evaluation
from serve.reports.document import section
from serve.reports.elements import counted, folded, printed, table, words

_MOST = 20
_FAILED_SHOWN = 200
_START = 90
_BETTER, _WORSE = 2, 4  # green and red, as series


def worst(evaluations: Sequence[Evaluation], judged: Sequence[Sequence[Pair]]) -> Iterator[Markup]:
    """The items with the largest wrong margins, one pair of each."""
    for one, pairs in zip(evaluations, judged, strict=True):
        of_item: dict[tuple[str, str], Pair] = {}
        for pair in pairs:
            key = pair.one.item.key
            if pair.margin <= 0 and (key not in of_item or pair.margin < of_item[key].margin):
                of_item[key] = pair
        # Sorting keeps the order of the data among equals.
        shown = sorted(of_item.values(), key=lambda pair: pair.margin)[:_MOST]
        whose = f": {one.model}" if len(evaluations) > 1 else ""
        if shown:
            about = (
                f"of {len(of_item):,} items with a wrong pair, the {len(shown)} with the largest "
                "wrong margins; each unfolds to its texts"
            )
            yield section(f"Worst mistakes{whose}", *map(_mistake, shown), about=about)


def failed(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """Which items have no reward, and why."""
    for one in evaluations:
        if one.failed:
            whose = f": {one.model}" if len(evaluations) > 1 else ""
            rows = [
                [item.id, item.subset, error.code, error.message]
                for item, error in one.failed[:_FAILED_SHOWN]
            ]
            shown = table(["id", "subset", "error", "what it says"], rows)
            about = ""
            if len(one.failed) > _FAILED_SHOWN:
                about = f"the first {_FAILED_SHOWN} of {len(one.failed):,}"
            title = f"{counted(len(one.failed), 'item')} without rewards"
            yield section(f"Not scored{whose}", folded(title, shown), about=about)


def _mistake(pair: Pair) -> Markup:
    item, rewards = pair.one
    start = " ".join(content_of(item.prompt[-1]).split()) if item.prompt else ""
    if len(start) > _START:
        start = start[:_START].rstrip() + "…"
    summary = Markup('<span class="number">{}</span> {}, {}: <span class="about">{}</span>').format(
        printed(pair.margin, ".2f"), item.subset, item.id, start
    )
    better, worse = pair.preference
    return folded(
        summary,
        *(_said(str(message.get("role", "")), content_of(message)) for message in item.prompt),
        _said(
            f"better response, reward {printed(rewards[better], '.3f')}",
            item.responses[better],
            _BETTER,
        ),
        _said(
            f"worse response, reward {printed(rewards[worse], '.3f')}",
            item.responses[worse],
            _WORSE,
        ),
    )


def _said(who: str, text: str, series: int | None = None) -> Markup:
    return Markup("<h3>{}</h3>{}").format(who, words(text, series))
