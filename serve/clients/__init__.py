"""Deprecated name of `serve.client`; the reward functions are in `serve.client.integrations`.

`serve.clients.trl` and its siblings are the same module objects as those of the new name.
"""

from __future__ import annotations

import sys
import warnings

from serve.client import (
    AsyncScoringClient,
    Comparison,
    Ranking,
    ScoringClient,
    ScoringFailedError,
    ServiceError,
)
from serve.client.integrations import base as rewards
from serve.client.integrations import ms_swift, openrlhf, slime, trl, verl

__all__ = [
    "AsyncScoringClient",
    "Comparison",
    "Ranking",
    "ScoringClient",
    "ScoringFailedError",
    "ServiceError",
    "ms_swift",
    "openrlhf",
    "rewards",
    "slime",
    "trl",
    "verl",
]

for _module in (ms_swift, openrlhf, rewards, slime, trl, verl):
    _name = "rewards" if _module is rewards else _module.__name__.rpartition(".")[2]
    sys.modules[f"{__name__}.{_name}"] = _module
warnings.warn(
    "serve.clients is deprecated: import serve.client, and reward functions from "
    "serve.client.integrations",
    DeprecationWarning,
    stacklevel=2,
)
