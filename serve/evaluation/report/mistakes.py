"""The worst mistakes with their texts in collapsed blocks, and the items that failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from serve.evaluation.report.pairs import Pair, get_content
from serve.evaluation.result import Evaluation
from serve.reports.document import section
from serve.reports.elements import details_block, format_number, format_quantity, table, text_block

_MAX_MISTAKES = 20
_MAX_FAILURES = 200
_MAX_PROMPT_CHARS = 90
_BETTER, _WORSE = 2, 4  # series whose colors are green and red


def render_worst_mistakes(
    evaluations: Sequence[Evaluation], pairs_by_model: Sequence[Sequence[Pair]]
) -> Iterator[Markup]:
    """Yield the items with the largest wrong margins, one pair per item."""
    for one, pairs in zip(evaluations, pairs_by_model, strict=True):
        worst_pairs: dict[tuple[str, str], Pair] = {}
        for pair in pairs:
            key = pair.scored_item.item.key
            if pair.margin <= 0 and (
                key not in worst_pairs or pair.margin < worst_pairs[key].margin
            ):
                worst_pairs[key] = pair
        # The sort is stable: equal margins keep the order of the data.
        shown = sorted(worst_pairs.values(), key=lambda pair: pair.margin)[:_MAX_MISTAKES]
        suffix = f": {one.model}" if len(evaluations) > 1 else ""
        if shown:
            about = (
                f"of {len(worst_pairs):,} items with a wrong pair, the {len(shown)} with the "
                "largest wrong margins; open one to see its texts"
            )
            yield section(f"Worst mistakes{suffix}", *map(_render_mistake, shown), about=about)


def render_failures(evaluations: Sequence[Evaluation]) -> Iterator[Markup]:
    """Yield tables of the items without a reward and their errors."""
    for one in evaluations:
        if one.failed_items:
            suffix = f": {one.model}" if len(evaluations) > 1 else ""
            rows = [
                [item.id, item.subset, error.code, error.message]
                for item, error in one.failed_items[:_MAX_FAILURES]
            ]
            failures = table(["id", "subset", "error", "message"], rows)
            about = ""
            if len(one.failed_items) > _MAX_FAILURES:
                about = f"the first {_MAX_FAILURES} of {len(one.failed_items):,}"
            title = f"{format_quantity(len(one.failed_items), 'item')} without rewards"
            yield section(f"Not scored{suffix}", details_block(title, failures), about=about)


def _render_mistake(pair: Pair) -> Markup:
    item, rewards = pair.scored_item
    prompt = " ".join(get_content(item.prompt[-1]).split()) if item.prompt else ""
    if len(prompt) > _MAX_PROMPT_CHARS:
        prompt = prompt[:_MAX_PROMPT_CHARS].rstrip() + "…"
    summary = Markup('<span class="number">{}</span> {}, {}: <span class="about">{}</span>').format(
        format_number(pair.margin, ".2f"), item.subset, item.id, prompt
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


def _render_message(heading: str, text: str, series: int | None = None) -> Markup:
    return Markup("<h3>{}</h3>{}").format(heading, text_block(text, series))
