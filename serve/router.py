"""Which replica gets a batch: the one with the least to do. Serve's own router draws two by lot."""

from __future__ import annotations

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica


class LeastLoadedRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """All replicas in one rank, of which Serve takes the one with the fewest running calls.

    A gateway sends a replica one batch, and the next one shortly before it is free. Drawing two
    replicas by lot would put a batch behind another one while a third replica stands idle.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """See `RequestRouter`."""
        if pending_request is not None:
            # Else Serve asks again without a pause while every replica is at its limit.
            pending_request.routing_context.should_backoff = True
        return [candidate_replicas] if candidate_replicas else []
