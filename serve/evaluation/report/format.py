"""How figures are printed: in percent, with what they lie between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rm_core.benchmarks.base import SubsetScore
from rm_core.benchmarks.statistics import Interval
from serve.reports.elements import printed

NOTHING = "\N{EM DASH}"


def percent(share: float | None) -> str:
    """Such as 94.27%."""
    return NOTHING if share is None else f"{share:.2%}"


def between(interval: Interval | None) -> str:
    """Such as 93.1 to 95.2."""
    return "" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def part_hint(name: str, part: SubsetScore, interval: Interval | None) -> str:
    """All that is known of a part, in one line."""
    phrases = [f"{name}: {percent(part.score)}"]
    if interval:
        phrases.append(f"95% interval {between(interval)}")
    items = f"{part.num_items:,} items"
    if part.num_expected is not None and part.num_expected != part.num_items:
        items = f"{part.num_items:,} of {part.num_expected:,} items"
    return ", ".join([*phrases, items])


def plain(value: Any) -> str:
    """What an evaluation used, as people read it."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return printed(value, "g")
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {plain(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(one) for one in value)
    return str(value)


def figure(name: str, value: float) -> str:
    """A further figure: shares in percent, others as they are."""
    if isinstance(value, int):
        return f"{value:,}"
    is_share = name.startswith(("difficulty", "mean", "accuracy"))
    return percent(value) if is_share else printed(value, ".4f")


def row_names(names: Sequence[str], alone: str) -> list[str]:
    """Names of rows: short ones of the models, or what the row is where there is only one.

    Args:
        names: of the models.
        alone: what the row is.
    """
    if len(names) == 1:
        return [alone]
    short = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
    return short if len(set(short)) == len(short) else list(names)


def compact(value: float) -> str:
    """A count of characters in few letters, such as 2.3k."""
    if abs(value) < 1_000:
        return printed(value, ".0f")
    return printed(value / 1_000, ".1f" if abs(value) < 10_000 else ".0f") + "k"
