"""A connection to one address: takes part after part, and gives back what it could not score."""

from __future__ import annotations

import threading
import time
from typing import Any

from serve.client import ScoringClient, ServiceError
from serve.client.responses import RequestResult
from serve.jobs.executors.base import ScoreBatchResult
from serve.jobs.executors.shards import Shard, ShardQueue

_FIRST_REST_S = 0.5
_LONGEST_REST_S = 30.0


class SenderThread(threading.Thread):
    """Sends parts until their queue is closed.

    Args:
        queue: where parts come from.
        client: of the address; this thread alone uses it.
        place: the address, for errors.
        fingerprint: that every answer must have.
        patience_s: seconds for which a part that is refused goes back into the queue, for this
            address or another.
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
        self._place = address
        self._fingerprint = fingerprint
        self._patience_s = retry_timeout_s
        self._rest_s = _FIRST_REST_S

    def run(self) -> None:
        """Until the queue is closed."""
        try:
            while part := self._queue.take():
                self._post(part)
        finally:
            self._client.close()

    def _post(self, part: Shard) -> None:
        try:
            answer = self._client.score_in_one_request(part.conversations, part.call.truncation)
            self._require_same(answer)
        except ServiceError as error:
            if error.retryable and self._is_patient(part):
                self._queue.requeue(part)
                self._rest()
            else:
                self._queue.fail(part, error)
        # Anything else would leave the job waiting for ever.
        except Exception as error:
            self._queue.fail(
                part,
                ServiceError(f"{self._place} answered nonsense: {type(error).__name__}: {error}"),
            )
        else:
            self._rest_s = _FIRST_REST_S
            self._queue.complete(part, ScoreBatchResult(answer.results, answer.num_computed_tokens))

    def _require_same(self, answer: RequestResult) -> None:
        if answer.fingerprint not in (None, self._fingerprint):
            raise ServiceError(
                f"{self._place} scores with another model than when the job began: it was "
                f"{self._fingerprint} and is {answer.fingerprint}; put the first one back and run "
                "the same command again"
            )

    def _is_patient(self, part: Shard) -> bool:
        now = time.monotonic()
        if part.failing_since is None:
            part.failing_since = now
        return now - part.failing_since < self._patience_s

    def _rest(self) -> None:
        """Leave the queue to other addresses for a while."""
        self._queue.is_closed.wait(self._rest_s)
        self._rest_s = min(_LONGEST_REST_S, 2 * self._rest_s)
