"""The worst mistakes with their texts folded away, and the items that could not be scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from serve.evaluation.report.pairs import Pair, get_content
from serve.evaluation.result import Evaluation
from serve.reports.document import section
from serve.reports.elements import details_block, format_number, format_quantity, table, text_block

_MAX_MISTAKES = 20
_MAX_FAILURES = 200
_START = 90
_BETTER, _WORSE = 2, 4  # green and red, as series


def render_worst_mistakes(
    evaluations: Sequence[Evaluation], pairs_by_model: Sequence[Sequence[Pair]]
) -> Iterator[Markup]:
    """The items with the largest wrong margins, one pair of each."""
    for one, pairs in zip(evaluations, pairs_by_model, strict=True):
        of_item: dict[tuple[str, str], Pair] = {}
        for pair in pairs:
            key = pair.scored_item.item.key
            if pair.margin <= 0 and (key not in of_item or pair.margin < of_item[key].margin):
                of_item[key] = pair
        # Sorting keeps the order of the data among equals.
        shown = sorted(of_item.values(), key=lambda pair: pair.margin)[:_MAX_MISTAKES]
        whose = f": {one.model}" if len(evaluations) > 1 else ""
        if shown:
            about = (
                f"of {len(of_item):,} items with a wrong pair, the {len(shown)} with the largest "
                "wrong margins; each unfolds to its texts"
            )
            yield section(f"Worst mistakes{whose}", *map(_render_mistake, shown), about=about)


def render_failures(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """Which items have no reward, and why."""
    for one in evaluations:
        if one.failed_items:
            whose = f": {one.model}" if len(evaluations) > 1 else ""
            rows = [
                [item.id, item.subset, error.code, error.message]
                for item, error in one.failed_items[:_MAX_FAILURES]
            ]
            shown = table(["id", "subset", "error", "what it says"], rows)
            about = ""
            if len(one.failed_items) > _MAX_FAILURES:
                about = f"the first {_MAX_FAILURES} of {len(one.failed_items):,}"
            title = f"{format_quantity(len(one.failed_items), 'item')} without rewards"
            yield section(f"Not scored{whose}", details_block(title, shown), about=about)


def _render_mistake(pair: Pair) -> Markup:
    item, rewards = pair.scored_item
    start = " ".join(get_content(item.prompt[-1]).split()) if item.prompt else ""
    if len(start) > _START:
        start = start[:_START].rstrip() + "…"
    summary = Markup('<span class="number">{}</span> {}, {}: <span class="about">{}</span>').format(
        format_number(pair.margin, ".2f"), item.subset, item.id, start
    )
    better, worse = pair.preference
    return details_block(
        summary,
        *(
            _render_message(str(message.get("role", "")), get_content(message))
            for message in item.prompt
        ),
        _render_message(
            f"better response, reward {format_number(rewards[better], '.3f')}",
            item.responses[better],
            _BETTER,
        ),
        _render_message(
            f"worse response, reward {format_number(rewards[worse], '.3f')}",
            item.responses[worse],
            _WORSE,
        ),
    )


def _render_message(who: str, text: str, series: int | None = None) -> Markup:
    return Markup("<h3>{}</h3>{}").format(who, text_block(text, series))
