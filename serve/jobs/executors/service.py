"""Running services, one or several addresses, with a few connections to each.

What an address refuses or loses is sent to another; a job ends only when a part of it was refused
for long enough by all. They have to serve one and the same model: that is asked at the start and
looked at in every answer.
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

_CONNECTIONS = 4  # to each address: a service merges what waits, so few are enough to fill it
_ASK_AGAIN_S = 1.0


class ServiceExecutor:
    """Scores with services.

    Args:
        urls: their addresses, at least one.
        model: which of their models; None if each serves one.
        api_key: of all of them; None if they are open.
        retry_s: seconds for which a part that is refused is sent again.
        timeout_s: deadline of each request; None: the service's own.

    Raises:
        ServiceError: an address is none.
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
        self._places = {url: get_display_url(url) for url in self._urls}
        self._model = model
        self._api_key = api_key
        self._retry_s = retry_s
        self._timeout_s = timeout_s
        self._fingerprint: dict[str, Any] | None = None
        self._served: ScoringModel | None = None
        self._queue = ShardQueue()
        self._threads: list[SenderThread] = []

    def resolve_identity(self) -> dict[str, Any]:
        """Fingerprint, tokenizer and limit of the model behind the addresses.

        Raises:
            ServiceError: none can be reached, or they do not serve the same.
        """
        found: dict[str, dict[str, Any]] = {}
        failure: ServiceError | None = None
        for url in self._urls:
            try:
                found[url] = self._asked(url, self._retry_s if len(self._urls) == 1 else 0.0)
            except ServiceError as error:
                if not error.retryable:
                    raise
                failure = error
        if not found:
            assert failure
            raise failure
        (first, identity), *others = found.items()
        for url, other in others:
            if other != identity:
                differing = ", ".join(k for k in identity if identity[k] != other.get(k))
                raise ServiceError(
                    f"{self._places[first]} and {self._places[url]} differ in {differing}, so "
                    "their rewards cannot be compared; give addresses that serve the same model in "
                    "the same way"
                )
        self._fingerprint = identity["fingerprint"]
        return identity

    def get_scoring_model(self, *, fetch: bool = False) -> ScoringModel | None:
        """The model of the first service that answered."""
        if self._served is None and fetch:
            self.resolve_identity()
        return self._served

    @property
    def capacity(self) -> int:
        """Enough calls that no connection waits while one is finished."""
        return 1 + 2 * len(self._urls)

    def submit(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> Future[ScoreBatchResult]:
        """Begin to score; the future can be cancelled until the first part is sent."""
        if not self._threads:
            self._start()
        return self._queue.add(conversations, truncation)

    def count_tokens(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> list[int | ScoreError]:
        """Tokens of each conversation, as the first service that answers counts them."""
        counts: list[int | ScoreError] = [0] * len(conversations)
        with self._client(self._urls[0], self._retry_s) as client:
            for places in split_into_shards(conversations):
                sent = [conversations[place] for place in places]
                body = {"conversations": sent, "truncation": truncation}
                answer = client.post("/v1/render", body)
                with _explained(self._places[self._urls[0]]):
                    for place, item in zip(places, answer["results"], strict=True):
                        counts[place] = read_error(item) or read_count(item["num_tokens"])
        return counts

    def close(self) -> None:
        """Let go of the connections."""
        self._queue.close()

    def _start(self) -> None:
        # Where there is another address, that is better than to wait.
        several = len(self._urls) > 1
        fingerprint = self._fingerprint or self.resolve_identity()["fingerprint"]
        for url in self._urls:
            for _ in range(_CONNECTIONS):
                client = self._client(url, 0.0 if several else self._retry_s)
                patience = self._retry_s if several else 0.0
                thread = SenderThread(self._queue, client, self._places[url], fingerprint, patience)
                thread.start()
                self._threads.append(thread)

    def _client(self, url: str, retry_s: float) -> ScoringClient:
        return ScoringClient(
            url,
            self._model,
            api_key=self._api_key,
            retry_s=retry_s,
            timeout_s=self._timeout_s,
        )

    def _asked(self, url: str, retry_s: float) -> dict[str, Any]:
        """What decides the rewards of one service, once its model is loaded."""
        deadline = time.monotonic() + retry_s
        place = self._places[url]
        with self._client(url, retry_s) as client:
            while True:
                answer = client.get("/info")
                with _explained(place):
                    name, model = _chosen(answer["models"], self._model, place)
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
                    error = ServiceError(
                        f"model {name!r} at {place} is {state}; wait until it is ready, or look "
                        "into the service's log"
                    )
                    error.retryable = True
                    raise error
                time.sleep(_ASK_AGAIN_S)


@contextlib.contextmanager
def _explained(place: str) -> Iterator[None]:
    """What a service answers may have any shape, and so fail to be read in any way."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ServiceError(
            f"{place} answered nonsense ({type(error).__name__}: {error}); is it a service of this "
            "project?"
        ) from error


def _chosen(
    models: dict[str, dict[str, Any]], name: str | None, place: str
) -> tuple[str, dict[str, Any]]:
    if name is None and len(models) == 1:
        return next(iter(models.items()))
    if name in models:
        assert name is not None
        return name, models[name]
    wanted = "none was named" if name is None else f"{name!r} was asked for"
    raise ServiceError(f"{place} serves {', '.join(models)} and {wanted}; choose one by --model")
