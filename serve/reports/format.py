"""Numbers as text, in reports and on the console."""

from __future__ import annotations

NOTHING = "\N{EM DASH}"


def format_number(value: float, form: str) -> str:
    """Format a number with a typographic minus sign, which is as wide as a plus sign."""
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def format_percent(
    share: float | None, decimals: int = 2, *, unit: str = "%", nothing: str = NOTHING
) -> str:
    """Format a fraction, such as 94.27%."""
    return nothing if share is None else f"{100 * share:.{decimals}f}{unit}"


def format_points(difference: float) -> str:
    """Format a difference of fractions in percentage points, without a negative zero."""
    return format_number(round(100 * difference, 2) + 0.0, "+.2f")


def format_quantity(number: int, what: str) -> str:
    """Format a number with a noun, such as "1 item" or "2,000 items"."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")
