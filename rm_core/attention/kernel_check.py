"""Checks at load time, on the device itself, that a backend computes attention correctly.

Kernels differ between releases and between GPUs, and a wrong mask or a dropped softcap gives
rewards that look plausible. Before the first request, the backend therefore computes attention over
a small tree, with the shapes and parameters of the model's own layers, and is compared with eager
attention in float32. A backend that fails is not used, and the next backend of the choice is tried.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from rm_core.attention.base import AttentionBackend, AttentionParams
from rm_core.attention.cpu_sdpa import CpuSdpaBackend
from rm_core.attention.eager import EagerBackend
from rm_core.attention.segments import build_segments, build_token_segments
from rm_core.attention.select import AttentionChoice, make_backend
from rm_core.config import Attention
from rm_core.errors import ModelLoadError
from rm_core.packing import pack

logger = logging.getLogger(__name__)

# Values have a standard deviation of 1. Half precision rounds weights to 1 in 256; a dropped
# softcap or a mask that is off by one token changes outputs by far more.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}
_MAX_LENGTH = 8_192


@dataclass(frozen=True, slots=True)
class AttentionHeads:
    """Head counts and head size of a model's attention."""

    num_heads: int
    num_key_value_heads: int
    head_dim: int


def select_validated_backend(
    choice: AttentionChoice,
    heads: AttentionHeads,
    all_params: Iterable[AttentionParams],
    dtype: torch.dtype,
    device: torch.device,
    *,
    requested: Attention,
    deterministic: bool,
) -> tuple[AttentionChoice, AttentionBackend]:
    """Return the first backend of a choice that passes the self-check; eager if none does.

    The returned choice has the reason of each failure. A backend that was requested by name has to
    pass.
    """
    failures: list[str] = []
    names = (choice.name, *choice.fallbacks)
    for name, next_name in itertools.pairwise((*names, "eager")):
        if name == "eager":
            break
        try:
            backend = make_backend(name, deterministic)
            check_backend(backend, heads, dict.fromkeys(all_params), device, dtype)
        # An installed package may fail to import; compilers and kernels raise arbitrary exception
        # classes.
        except Exception as error:
            failure = (
                f"{name} failed its self-check on this device: {type(error).__name__}: {error}"
            )
            failure = failure.strip().splitlines()[0]
            if requested != "auto":
                raise ModelLoadError(f"attention {failure}; use 'auto' or 'eager'") from error
            slower = ", which is slower" if next_name == "eager" else ""
            logger.warning("attention: %s; trying %s next%s", failure, next_name, slower)
            failures.append(failure)
        else:
            reasons = failures or [choice.reason]
            if isinstance(backend, CpuSdpaBackend):
                reasons = [*reasons, backend.kernel_failure]
            return AttentionChoice(name, "; ".join(reasons)), backend
    reason = "; ".join(failures) or choice.reason
    return AttentionChoice("eager", reason), make_backend("eager", deterministic)


# In inference mode, as for batches: torch compiles a kernel for each mode, so that otherwise the
# first batch would compile it again.
@torch.inference_mode()
def check_backend(
    backend: AttentionBackend,
    heads: AttentionHeads,
    all_params: Iterable[AttentionParams],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Raise `ArithmeticError` if a backend differs from eager attention by more than rounding."""
    for params in all_params:
        length = min(_MAX_LENGTH, 2 * 128 + (params.window or 0))
        start = tuple(range(length))
        (tree,) = pack(
            [(*start, 0), (*start, 1, *range(150)), (*start[:100], 2), start[:50], (7, 7)], 10**6
        ).batches
        # The same conversations with the first tokens of one in the prefix cache.
        has_cache = [s.parent < 0 and len(s.token_ids) > 100 for s in tree.segments]
        cached_tree = tree.exclude_cached([40 * cached for cached in has_cache])
        generator = torch.Generator().manual_seed(0)
        query, key, value = (
            torch.randn(tree.num_tokens, count, heads.head_dim, generator=generator)
            for count in (heads.num_heads, heads.num_key_value_heads, heads.num_key_value_heads)
        )
        # Raw scores have a standard deviation of 1, or of the softcap, so that the softcap matters.
        query = query * (params.softcap or 1.0) / (params.scaling * heads.head_dim**0.5)
        query, key, value = (tensor.to(device, dtype) for tensor in (query, key, value))
        readouts, cached_readouts = sorted(tree.ends), sorted(cached_tree.ends)
        for segments, queries in (
            (build_segments(tree), query),
            (build_token_segments(tree, readouts), query[readouts]),
            (build_segments(cached_tree), query[: cached_tree.num_tokens]),
            (build_token_segments(cached_tree, cached_readouts), query[cached_readouts]),
        ):
            output, expected = (
                candidate.attend(candidate.plan(segments, len(key), device), *tensors, params)
                for candidate, tensors in (
                    (backend, (queries, key, value)),
                    (EagerBackend(), (queries.float(), key.float(), value.float())),
                )
            )
            difference = float((output.float() - expected).abs().max())
            if not difference <= _TOLERANCE[str(dtype).removeprefix("torch.")]:
                raise ArithmeticError(
                    f"output differs from eager by {difference:.3g} with {params}"
                )
