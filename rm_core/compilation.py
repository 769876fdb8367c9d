"""Settings of `torch.compile` that attention kernels and decoder layers share."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch

# torch keeps 8 compiled variants of a function for the whole process, and another model, dtype or
# device takes some of them. A kernel that must be compiled as a whole fails beyond the limit.
RECOMPILE_LIMIT = 64


def recompile_options() -> dict[str, Any]:
    """Return options of `torch.compile` that raise the limit of compiled variants.

    Releases without such an option get the limit of the process raised. Newer ones keep that limit
    for each thread, and batches run on another thread than the load.
    """
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": RECOMPILE_LIMIT}
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    return {}


@contextlib.contextmanager
def compile_for_all_sizes() -> Iterator[None]:
    """Compile, where it is needed, code that does not depend on which sizes are equal.

    By default sizes that are equal at the first call, such as tokens and heads or queries and keys,
    have to stay equal, and rows where they are not are compiled again.
    """
    from torch.fx.experimental import _config

    config: Any = _config
    with config.patch(use_duck_shape=False):
        yield
