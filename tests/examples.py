"""How many examples property tests draw, by the profile of Hypothesis (`tests/conftest.py`)."""

from __future__ import annotations

from hypothesis import settings


def limit_examples(number: int) -> int:
    """Return the number of examples that take long: a third of the profile's, at most `number`."""
    return min(number, settings().max_examples // 3)
