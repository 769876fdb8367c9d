"""Settings of `torch.compile` that attention kernels and decoder layers share."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch

# By default, torch keeps 8 compiled variants of a function for the whole process, and each further
# model, dtype or device needs variants. A kernel compiled with `fullgraph` fails beyond the limit.
RECOMPILE_LIMIT = 64


def recompile_options() -> dict[str, Any]:
    """Return options for `torch.compile` that raise the limit of compiled variants.

    For releases without such an option, raise the limit of the process. Newer releases keep that
    limit per thread, and batches do not run on the thread that loads the model.
    """
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": RECOMPILE_LIMIT}
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    return {}


@contextlib.contextmanager
def compile_for_all_sizes() -> Iterator[None]:
    """Make compiled code independent of which sizes are equal.

    By default, torch assumes that sizes that are equal in the first call (tokens and heads, or
    queries and keys) always are, and recompiles for rows where they differ.
    """
    from torch.fx.experimental import _config

    config: Any = _config
    with config.patch(use_duck_shape=False):
        yield
