"""Executor that scores with running services, over a few connections to each.

A shard that one service refuses or loses is sent to another one; the job ends only when all
services have refused a shard for long enough. All services must serve the same model: this is
checked at the start and in every response.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from rm_core import Fingerprint, ScoreError, Truncation
from rm_core.inputs.conversations import ChatJson
from serve.client import ScoringClient, ServiceError
from serve.client.endpoints import get_display_url
from serve.client.responses import read_count, read_error
from serve.jobs.executors.base import ScoreBatchResult, ScoringModel
from serve.jobs.executors.connection import SenderThread
from serve.jobs.executors.shards import ShardQueue, split_into_shards

_CONNECTIONS = 4  # per service: services batch across requests, so a few connections fill them
_ASK_AGAIN_S = 1.0


class ServiceExecutor:
    """Scores with one or several services.

    Args:
        urls: URLs of the services, at least one.
        model: alias of the model; None if each service serves one model.
        api_key: API key for all services; None if they need none.
        retry_s: seconds for which a refused shard is sent again.
        timeout_s: deadline of each request in seconds; None for the service's default.

    Raises:
        ServiceError: a URL is invalid.
    """

    drain_timeout_s: float | None = 5.0

    def __init__(
        self,
        urls: Sequence[str],
        model: str | None,
        *,
        api_key: str | None,
        retry_s: float,
        timeout_s: float | None = None,
    ) -> None:
        self._urls = list(dict.fromkeys(urls))
        self._addresses = {url: get_display_url(url) for url in self._urls}
        self._model = model
        self._api_key = api_key
        self._retry_s = retry_s
        self._timeout_s = timeout_s
        self._fingerprint: dict[str, Any] | None = None
        self._served: ScoringModel | None = None
        self._queue = ShardQueue()
        self._threads: list[SenderThread] = []

    def resolve_identity(self) -> dict[str, Any]:
        """Return fingerprint, encoding digest and maximum length of the services' model.

        Raises:
            ServiceError: no service can be reached, or the services differ.
        """
        identities: dict[str, dict[str, Any]] = {}
        last_error: ServiceError | None = None
        for url in self._urls:
            try:
                identities[url] = self._query_identity(
                    url, self._retry_s if len(self._urls) == 1 else 0.0
                )
            except ServiceError as error:
                if not error.retryable:
                    raise
                last_error = error
        if not identities:
            assert last_error
            raise last_error
        (first, identity), *others = identities.items()
        for url, other in others:
            if other != identity:
                differing = ", ".join(k for k in identity if identity[k] != other.get(k))
                raise ServiceError(
                    f"{self._addresses[first]} and {self._addresses[url]} differ in {differing}, "
                    "so their rewards cannot be compared; give services with the same model and "
                    "the same settings"
                )
        self._fingerprint = identity["fingerprint"]
        return identity

    def get_scoring_model(self, *, fetch: bool = False) -> ScoringModel | None:
        """Return the model of the first service that responded."""
        if self._served is None and fetch:
            self.resolve_identity()
        return self._served

    @property
    def capacity(self) -> int:
        """Number of calls that keeps all connections busy while one call is finished."""
        return 1 + 2 * len(self._urls)

    def submit(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> Future[ScoreBatchResult]:
        """Start to score; the future can be cancelled until the first shard is sent."""
        if not self._threads:
            self._start()
        return self._queue.add(conversations, truncation)

    def count_tokens(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> list[int | ScoreError]:
        """Return the number of tokens of each conversation, counted by the first service."""
        counts: list[int | ScoreError] = [0] * len(conversations)
        with self._client(self._urls[0], self._retry_s) as client:
            for indices in split_into_shards(conversations):
                shard = [conversations[index] for index in indices]
                body = {"conversations": shard, "truncation": truncation}
                response = client.post("/v1/render", body)
                with _response_errors(self._addresses[self._urls[0]]):
                    for index, item in zip(indices, response["results"], strict=True):
                        counts[index] = read_error(item) or read_count(item["num_tokens"])
        return counts

    def close(self) -> None:
        """Close the connections."""
        self._queue.close()

    def _start(self) -> None:
        # With several services, another service is better than waiting for this one.
        has_several = len(self._urls) > 1
        fingerprint = self._fingerprint or self.resolve_identity()["fingerprint"]
        for url in self._urls:
            for _ in range(_CONNECTIONS):
                client = self._client(url, 0.0 if has_several else self._retry_s)
                shard_retry_s = self._retry_s if has_several else 0.0
                thread = SenderThread(
                    self._queue, client, self._addresses[url], fingerprint, shard_retry_s
                )
                thread.start()
                self._threads.append(thread)

    def _client(self, url: str, retry_s: float) -> ScoringClient:
        return ScoringClient(
            url,
            self._model,
            api_key=self._api_key,
            retry_timeout_s=retry_s,
            timeout_s=self._timeout_s,
        )

    def _query_identity(self, url: str, retry_s: float) -> dict[str, Any]:
        """Wait until a service has loaded the model; return what decides its rewards."""
        deadline = time.monotonic() + retry_s
        address = self._addresses[url]
        with self._client(url, retry_s) as client:
            while True:
                info = client.get("/info")
                with _response_errors(address):
                    name, model = _choose_model(info["models"], self._model, address)
                    state = model["state"]
                    if state == "ready" and model.get("encoding_sha256"):
                        fingerprint = model["fingerprint"]
                        max_length = read_count(model["max_model_len"])
                        self._served = ScoringModel(name, Fingerprint(**fingerprint), max_length)
                        return {
                            "fingerprint": fingerprint,
                            "encoding_sha256": model["encoding_sha256"],
                            "max_length": max_length,
                        }
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f"model {name!r} at {address} is {state}; wait until the model is ready, "
                        "or check the service's log",
                        retryable=True,
                    )
                time.sleep(_ASK_AGAIN_S)


@contextlib.contextmanager
def _response_errors(address: str) -> Iterator[None]:
    """Turn exceptions from reading a malformed response into a `ServiceError`."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ServiceError(
            f"{address} returned an unexpected response ({type(error).__name__}: {error}); check "
            "that it is a skyreward service"
        ) from error


def _choose_model(
    models: dict[str, dict[str, Any]], name: str | None, address: str
) -> tuple[str, dict[str, Any]]:
    if name is None and len(models) == 1:
        return next(iter(models.items()))
    if name in models:
        assert name is not None
        return name, models[name]
    problem = "no model was named" if name is None else f"not {name!r}"
    raise ServiceError(f"{address} serves {', '.join(models)}, {problem}; choose one by --model")
