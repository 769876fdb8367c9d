"""Request router of the scorers: the least loaded replica, and no call waits for a dead one."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

logger = logging.getLogger(__name__)

_NAMESPACE = "serve"
_POLL_INTERVAL_S = 2.0


class LeastLoadedRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Puts all replicas in one rank, of which Serve takes the one with the fewest running calls.

    A gateway sends a replica one batch, and the next one shortly before the replica is free.
    Serve's default power-of-two-choices router could queue a batch behind another while a third
    replica is idle.

    A machine that is cut off closes no connection, so calls to it would wait for the minutes of
    Ray's keepalive (7 by default). The router therefore closes the connection to a replica as soon
    as Ray knows that its actor is dead; its calls end, and their batches go to another replica.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._closing_tasks: set[asyncio.Task[None]] = set()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """See `RequestRouter`. A replica that has the batch's prompts goes first if it is free."""
        if pending_request is not None:
            # Otherwise Serve retries without a pause while every replica is at its limit.
            pending_request.routing_context.should_backoff = True
            preferred = self._find_preferred(candidate_replicas, pending_request)
            if preferred is not None:
                return [[preferred], candidate_replicas]
        return [candidate_replicas] if candidate_replicas else []

    def _find_preferred(
        self, candidates: list[RunningReplica], pending_request: PendingRequest
    ) -> RunningReplica | None:
        """Return the replica that the gateway prefers, if no other one has fewer calls."""
        batch = next(iter(pending_request.args), None)
        name = getattr(batch, "preferred_replica", "")
        preferred = next((r for r in candidates if r.replica_id.unique_id == name), None)
        if preferred is None:
            return None
        num_calls = [self.replica_queue_len_cache.get(r.replica_id) for r in candidates]
        own = self.replica_queue_len_cache.get(preferred.replica_id)
        is_free = own is not None and all(n is not None and own <= n for n in num_calls)
        return preferred if is_free else None

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """See `RequestRouter`; called on the router's event loop."""
        before = dict(self.curr_replicas)
        super().update_replicas(replicas)
        for replica_id, replica in before.items():
            if replica_id not in self.curr_replicas:
                task = asyncio.get_running_loop().create_task(_close_when_dead(replica))
                self._closing_tasks.add(task)
                task.add_done_callback(self._closing_tasks.discard)


async def _close_when_dead(replica: RunningReplica) -> None:
    """Close the connection to a replica once it is dead; until then it may finish its calls."""
    name = replica.replica_id.to_full_id_str()
    while await asyncio.to_thread(is_actor_alive, name, _NAMESPACE):
        await asyncio.sleep(_POLL_INTERVAL_S)
    channel = getattr(replica, "_channel", None)
    if channel is not None:
        await channel.close()


def is_actor_alive(actor: str, namespace: str) -> bool:
    """Return whether a named actor is alive, or True if that cannot be found out."""
    if not ray.is_initialized():  # `ray.get_actor` would start another Ray
        return False
    try:
        ray.get_actor(actor, namespace)
    except ValueError:
        return False
    except Exception as error:  # Ray's head does not answer, so nothing is known
        logger.warning("cannot find out whether %s is dead: %s", actor, error)
    return True
