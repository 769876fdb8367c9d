"""Python clients of the service."""

from serve.clients.http import ScoringClient, ServiceError

__all__ = ["ScoringClient", "ServiceError"]
