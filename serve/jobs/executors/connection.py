"""A connection to one service: takes shards from the queue and returns those it cannot score."""

from __future__ import annotations

import threading
import time
from typing import Any

from serve.client import ScoringClient, ServiceError
from serve.client.responses import RequestResult
from serve.jobs.executors.base import ScoreBatchResult
from serve.jobs.executors.shards import Shard, ShardQueue

_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 30.0


class SenderThread(threading.Thread):
    """Sends shards until the queue is closed.

    Args:
        queue: source of the shards.
        client: client of the service, used by this thread alone.
        address: address of the service, for error messages.
        fingerprint: expected fingerprint of every response.
        retry_timeout_s: seconds for which a refused shard is put back into the queue, for this
            service or another.
    """

    def __init__(
        self,
        queue: ShardQueue,
        client: ScoringClient,
        address: str,
        fingerprint: dict[str, Any],
        retry_timeout_s: float,
    ) -> None:
        super().__init__(name=f"post-{address}", daemon=True)
        self._queue = queue
        self._client = client
        self._address = address
        self._fingerprint = fingerprint
        self._retry_timeout_s = retry_timeout_s
        self._backoff_s = _FIRST_BACKOFF_S

    def run(self) -> None:
        """Send shards until the queue is closed."""
        try:
            while shard := self._queue.take():
                self._send(shard)
        finally:
            self._client.close()

    def _send(self, shard: Shard) -> None:
        try:
            response = self._client.score_in_one_request(shard.conversations, shard.call.truncation)
            self._require_fingerprint(response)
        except ServiceError as error:
            if error.retryable and self._should_retry(shard):
                self._queue.requeue(shard)
                self._back_off()
            else:
                self._queue.fail(shard, error)
        # An uncaught exception would leave the job waiting without limit.
        except Exception as error:
            self._queue.fail(
                shard,
                ServiceError(
                    f"{self._address} returned an unexpected response: {type(error).__name__}: "
                    f"{error}"
                ),
            )
        else:
            self._backoff_s = _FIRST_BACKOFF_S
            self._queue.complete(
                shard, ScoreBatchResult(response.results, response.num_computed_tokens)
            )

    def _require_fingerprint(self, response: RequestResult) -> None:
        if response.fingerprint not in (None, self._fingerprint):
            raise ServiceError(
                f"{self._address} scores with another model than when the job began: its "
                f"fingerprint was {self._fingerprint} and is {response.fingerprint}; serve the "
                "first model again and run the same command again"
            )

    def _should_retry(self, shard: Shard) -> bool:
        now = time.monotonic()
        if shard.failing_since is None:
            shard.failing_since = now
        return now - shard.failing_since < self._retry_timeout_s

    def _back_off(self) -> None:
        """Back off, and leave the queue to other connections."""
        self._queue.is_closed.wait(self._backoff_s)
        self._backoff_s = min(_MAX_BACKOFF_S, 2 * self._backoff_s)
