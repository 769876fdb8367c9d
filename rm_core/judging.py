"""Verdicts of a judge: what it says of two answers in both orders, and of a group of answers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from rm_core.inputs.judge_items import JudgePair
from rm_core.inputs.warnings import LOW_LABEL_MASS_WARNING
from rm_core.types import Reward, ScoreError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of two answers."""

    margin: float  # mean log-odds over the orders that the first answer is better
    # Log-odds that the first answer is better and label mass, with the first answer read first,
    # then (if it was asked) second.
    orders: tuple[tuple[float, float], ...]
    num_tokens: int  # number of tokens of all orders
    # Warnings about the pair in the given order, since the other order has the same texts; and
    # whether the judge rarely replies with its labels.
    warnings: tuple[str, ...] = ()

    @property
    def is_consistent(self) -> bool | None:
        """Whether the same answer is better in both orders; None if one was read."""
        if len(self.orders) < 2:
            return None
        return len({log_odds > 0 for log_odds, _ in self.orders}) == 1


def combine_orders(given: Reward, swapped: Reward | None = None) -> Verdict:
    """Return the verdict on two answers from the judge's results for one order or both.

    With both, the verdict on the answers in reverse has exactly the negative margin.
    """
    assert given.label_mass is not None
    if swapped is None:
        orders = ((given.reward, given.label_mass),)
        return Verdict(given.reward, orders, given.num_tokens, given.warnings)
    assert swapped.label_mass is not None
    warnings = given.warnings
    if LOW_LABEL_MASS_WARNING in swapped.warnings and LOW_LABEL_MASS_WARNING not in warnings:
        warnings = (*warnings, LOW_LABEL_MASS_WARNING)
    return Verdict(
        (given.reward - swapped.reward) / 2,
        ((given.reward, given.label_mass), (-swapped.reward, swapped.label_mass)),
        given.num_tokens + swapped.num_tokens,
        warnings,
    )


def combine_results(
    given: Reward | ScoreError, swapped: Reward | ScoreError | None = None
) -> Verdict | ScoreError:
    """Like `combine_orders`, of results that may be errors: return the first one."""
    if isinstance(given, ScoreError):
        return given
    return swapped if isinstance(swapped, ScoreError) else combine_orders(given, swapped)


def expand_orders(
    pairs: Sequence[JudgePair | ScoreError], *, both_orders: bool = True
) -> list[JudgePair]:
    """Return what the judge reads for each readable pair: one order or both."""
    expanded = []
    for pair in pairs:
        if not isinstance(pair, ScoreError):
            expanded += [pair, pair.swap()] if both_orders else [pair]
    return expanded


def merge_orders(
    pairs: Sequence[JudgePair | ScoreError],
    results: Sequence[Reward | ScoreError],
    *,
    both_orders: bool = True,
) -> list[Verdict | ScoreError]:
    """Return the verdict on each pair, or its error, from the results of `expand_orders`."""
    remaining = iter(results)
    return [
        pair
        if isinstance(pair, ScoreError)
        else combine_results(next(remaining), next(remaining) if both_orders else None)
        for pair in pairs
    ]


class RankedAnswer(NamedTuple):
    """An answer's mean margin against the other answers of its group."""

    reward: float  # mean margin against those with which the judge could compare it
    num_comparisons: int  # number of those answers
    failure: ScoreError | None  # error of the first comparison that failed; None if none did
    num_failures: int  # number of comparisons that failed
    warnings: tuple[str, ...] = ()  # whether the judge rarely replied with its labels


def rank_answers(
    num_answers: int, verdicts: Sequence[Verdict | ScoreError]
) -> list[RankedAnswer | ScoreError]:
    """Rank answers by their mean margin against each other.

    The verdicts are in the order of `itertools.combinations`. An answer without any verdict gets
    the error of a comparison.
    """
    margins: list[list[float]] = [[] for _ in range(num_answers)]
    warnings: list[tuple[str, ...]] = [()] * num_answers
    failures: list[list[ScoreError]] = [[] for _ in range(num_answers)]
    for (first, second), verdict in zip(combinations(range(num_answers), 2), verdicts, strict=True):
        for answer, sign in ((first, 1), (second, -1)):
            if isinstance(verdict, ScoreError):
                failures[answer].append(verdict)
            else:
                margins[answer].append(sign * verdict.margin)
                if LOW_LABEL_MASS_WARNING in verdict.warnings:
                    warnings[answer] = (LOW_LABEL_MASS_WARNING,)
    return [
        RankedAnswer(
            statistics.fmean(own), len(own), failed[0] if failed else None, len(failed), warned
        )
        if own
        else failed[0]
        for own, failed, warned in zip(margins, failures, warnings, strict=True)
    ]
