"""Formatting of metrics, intervals and settings in reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rm_core.benchmarks.base import SubsetScore
from rm_core.benchmarks.statistics import Interval
from serve.reports.elements import format_number

NOTHING = "\N{EM DASH}"


def format_percent(share: float | None) -> str:
    """Format a fraction, such as 94.27%."""
    return NOTHING if share is None else f"{share:.2%}"


def format_interval(interval: Interval | None) -> str:
    """Format an interval of fractions in percent, such as 93.1 to 95.2."""
    return "" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def describe_subset(name: str, subset: SubsetScore, interval: Interval | None) -> str:
    """Describe the score, interval and size of a subset in one line."""
    phrases = [f"{name}: {format_percent(subset.score)}"]
    if interval:
        phrases.append(f"95% interval {format_interval(interval)}")
    items = f"{subset.num_items:,} items"
    if subset.num_expected is not None and subset.num_expected != subset.num_items:
        items = f"{subset.num_items:,} of {subset.num_expected:,} items"
    return ", ".join([*phrases, items])


def format_value(value: Any) -> str:
    """Format a value of the provenance for display."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_number(value, "g")
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {format_value(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(format_value(one) for one in value)
    return str(value)


def format_metric(name: str, value: float) -> str:
    """Format a further metric: fractions in percent, other values unscaled."""
    if isinstance(value, int):
        return f"{value:,}"
    is_fraction = name.startswith(("difficulty", "mean", "accuracy"))
    return format_percent(value) if is_fraction else format_number(value, ".4f")


def get_row_names(names: Sequence[str], alone: str) -> list[str]:
    """Return row names: shortened names of the models, or `alone` if there is one model.

    Args:
        names: names of the models.
        alone: row name for a single model.
    """
    if len(names) == 1:
        return [alone]
    short = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
    return short if len(set(short)) == len(short) else list(names)


def format_compact(value: float) -> str:
    """Format a number of characters compactly, such as 2.3k."""
    if abs(value) < 1_000:
        return format_number(value, ".0f")
    return format_number(value / 1_000, ".1f" if abs(value) < 10_000 else ".0f") + "k"
