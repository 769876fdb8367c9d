"""Tolerances between two correct computations of the same reward, by dtype."""

from __future__ import annotations

import math

import torch

# Absolute tolerance. Rewards of trained models stay below 100. The relative tolerance is for larger
# rewards, where 1e-4 is less than a few float32 steps.
FLOAT32_TOLERANCE = 1e-4
_FLOAT32_RELATIVE = 2.0**-17
# In bfloat16 on CPUs, the largest difference between SDPA and eager over the built-in conversations
# was 2.1 to 3.5 times the mean difference between eager and float32 (three models). For batches of
# a trained 135M model under eager attention, the factor was 3.5. Not measured on CUDA.
ROUNDING_FACTOR = 6.0

# In float32 on CPUs, the largest difference between the engine and plain transformers over the
# self-check's prefixes was up to 9.8 times the mean difference between plain transformers and
# float64. Measured on 46 random models of six layers that amplify rounding, with prepacked linear
# layers.
FLOAT32_ROUNDING_FACTOR = 24.0


def bfloat16_step(reward: float) -> float:
    """Return the distance of adjacent bfloat16 numbers at a reward, such as 0.03125 from 4 to 8."""
    return math.ldexp(1.0, math.frexp(reward)[1] - 8)


def compute_tolerance(
    reward: float, dtype: torch.dtype, mean_error: float, factor: float = ROUNDING_FACTOR
) -> float:
    """Return the largest absolute difference from plain transformers that rounding can explain.

    Args:
        reward: reward of plain transformers in `dtype`.
        dtype: dtype of the decoder.
        mean_error: mean absolute difference between plain transformers in `dtype` and plain
            transformers in full precision.
        factor: allowed multiple of the mean error.

    Returns:
        The larger of `factor` times the mean error and a minimum. The minimum in float32 is 1e-4,
        or 64 float32 steps for rewards of 13 and more; in other dtypes, one bfloat16 step at the
        reward.
    """
    if dtype == torch.float32:
        minimum = max(FLOAT32_TOLERANCE, _FLOAT32_RELATIVE * abs(reward))
    else:
        minimum = bfloat16_step(reward)
    return max(minimum, factor * mean_error)
