"""Python clients of the service, and reward functions for trainers. Imports no torch."""

from serve.client.async_client import AsyncScoringClient
from serve.client.errors import ScoringFailedError, ServiceError
from serve.client.responses import Comparison, ModelRewards, Ranking, StepRewards, TurnRewards
from serve.client.sync_client import ScoringClient

__all__ = [
    "AsyncScoringClient", "Comparison", "ModelRewards", "Ranking", "ScoringClient",
    "ScoringFailedError", "ServiceError", "StepRewards", "TurnRewards",
]  # fmt: skip
