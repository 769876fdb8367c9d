"""Python clients of the service, and reward functions for trainers. Imports no torch."""

from serve.clients.answers import Comparison, Ranking
from serve.clients.async_http import AsyncScoringClient
from serve.clients.errors import ScoringFailedError, ServiceError
from serve.clients.http import ScoringClient

__all__ = [
    "AsyncScoringClient",
    "Comparison",
    "Ranking",
    "ScoringClient",
    "ScoringFailedError",
    "ServiceError",
]
