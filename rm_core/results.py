"""What becomes of a model's outputs: a reward, the rewards of steps, or a verdict. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import islice
from typing import Literal, TypeAlias, get_args

from rm_core.config import Kind
from rm_core.inputs.warnings import LOW_LABEL_MASS, LOW_LABEL_MASS_WARNING
from rm_core.packing import Readouts
from rm_core.types import Encoded, Reward, ScoreError, sigmoid

Aggregation: TypeAlias = Literal["last", "min", "mean", "product"]
"""How the rewards of steps become the reward of an answer."""

AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)

NUM_OUTPUTS: dict[Kind, int] = {"classifier": 1, "step": 1, "judge": 2}
"""Number of the head's outputs at each readout."""


def aggregate(step_rewards: Sequence[float], aggregation: Aggregation) -> float:
    """Return the reward of an answer from the rewards of its steps, of which there is one."""
    match aggregation:
        case "last":
            return step_rewards[-1]
        case "min":
            return min(step_rewards)
        case "mean":
            return statistics.fmean(step_rewards)
        case "product":
            return math.prod(step_rewards)


def list_readouts(items: Sequence[Encoded], kind: Kind) -> list[Readouts]:
    """Return the readouts of encoded conversations as `rm_core.packing.pack` takes them."""
    return [() if kind == "classifier" else item.readouts for item in items]


def merge_results(
    encoded: Sequence[Encoded | ScoreError],
    outputs: Sequence[float | ScoreError],
    kind: Kind = "classifier",
    aggregation: Aggregation = "last",
    *,
    raw: bool = False,
) -> list[Reward | ScoreError]:
    """Merge outputs at the readouts with encoding errors into one result per conversation.

    With `raw`, `step_rewards` are the outputs themselves.
    """
    remaining = iter(outputs)
    results: list[Reward | ScoreError] = []
    for item in encoded:
        if isinstance(item, ScoreError):
            results.append(item)
            continue
        values = list(islice(remaining, NUM_OUTPUTS[kind] * len(item.readouts)))
        numbers = [value for value in values if not isinstance(value, ScoreError)]
        error = next((value for value in values if isinstance(value, ScoreError)), None)
        results.append(error or _build_reward(item, numbers, kind, aggregation, raw))
    assert next(remaining, None) is None
    return results


def _build_reward(
    item: Encoded, values: list[float], kind: Kind, aggregation: Aggregation, raw: bool
) -> Reward:
    reward, label_mass, warnings = values[0], None, item.warnings
    steps: tuple[float, ...] = ()
    if raw:
        reward, steps = values[-1], tuple(values)
    elif kind == "step":
        steps = tuple(map(sigmoid, values))
        reward = aggregate(steps, aggregation)
    elif kind == "judge":
        label_mass = min(1.0, math.exp(values[1]))  # the two sums are rounded differently
        if label_mass < LOW_LABEL_MASS:
            warnings = (*warnings, LOW_LABEL_MASS_WARNING)
    return Reward(
        reward, item.num_tokens, item.truncated, warnings, item.input_format, steps, label_mass
    )
