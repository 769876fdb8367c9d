"""How far two correct computations of one reward may be apart, by dtype."""

from __future__ import annotations

import math

import torch

# Absolute. Rewards of trained models stay below 100; the relative part is for larger ones, where
# 1e-4 is less than a few float32 steps.
FLOAT32_TOLERANCE = 1e-4
_FLOAT32_RELATIVE = 2.0**-17
# In bfloat16 on CPUs, the largest difference of SDPA from eager over the built-in conversations was
# 2.1 to 3.5 times the mean distance of eager from float32 (three models). Under eager attention, of
# a trained model of 135M, batches strayed 3.5 times. Not measured on CUDA.
ROUNDING_FACTOR = 6.0

# In float32 on CPUs, the largest difference of the engine from plain transformers over the
# self-check's prefixes was up to 9.8 times the mean distance of plain transformers from float64:
# 46 random models of six layers that amplify rounding, with packed linear layers.
FLOAT32_ROUNDING_FACTOR = 24.0


def bfloat16_step(reward: float) -> float:
    """Distance of neighbouring bfloat16 numbers at a reward: 0.03125 from 4 to 8, and so on."""
    return math.ldexp(1.0, math.frexp(reward)[1] - 8)


def compute_tolerance(
    reward: float, dtype: torch.dtype, mean_error: float, factor: float = ROUNDING_FACTOR
) -> float:
    """Largest absolute difference from plain transformers that rounding explains.

    Args:
        reward: of plain transformers, in `dtype`.
        dtype: of the decoder.
        mean_error: mean absolute difference of plain transformers in `dtype` from plain
            transformers in full precision.
        times: how many times the mean error is allowed.

    Returns:
        In float32, 1e-4 and, from rewards of 13 on, 64 float32 steps; else one bfloat16 step at
        the reward; or `times` the mean error. The larger of the two.
    """
    if dtype == torch.float32:
        least = max(FLOAT32_TOLERANCE, _FLOAT32_RELATIVE * abs(reward))
    else:
        least = bfloat16_step(reward)
    return max(least, factor * mean_error)
