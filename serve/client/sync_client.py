"""The synchronous client of the native routes."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import httpx

from rm_core import Reward, ScoreError, Truncation
from rm_core.types import Conversation
from serve.client.base import BaseClient, build_options
from serve.client.batching import COMPARE_ROUTE, RANK_ROUTE, SCORE_ROUTE, BatchCall, RequestShard
from serve.client.errors import ServiceError
from serve.client.progress import show_progress
from serve.client.responses import Comparison, Ranking, RequestResult
from serve.client.sansio import Pause, Steps, encode_json

T = TypeVar("T")
R = TypeVar("R")


class ScoringClient(BaseClient):
    """Posts to one or several running services that serve the same model. A context manager.

    A request that is refused for a while, or lost with its connection, is sent again, to another
    address if there is one, under the same `X-Request-Id`; each time is logged as a warning.
    Scoring twice is harmless. May be used from several threads and in forked processes, and
    pickled; the connections are shared by threads and never by processes.

    Args:
        url: address of the service, such as `http://127.0.0.1:8000`, or several.
        model: which of its models; None if it serves one.
        options: the other fields of `ClientOptions`, by name: `api_key`, `retry_s`, `timeout_s`, ...

    Raises:
        ServiceError: `url` is no address, or `api_key` no key.
    """

    _pool: httpx.Client | None
    _owner: int

    def __init__(self, url: str | Sequence[str], model: str | None = None, **options: Any) -> None:
        super().__init__(build_options(url, model, **options))
        self._reset_pool()

    def score(
        self,
        conversations: Sequence[Conversation],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        progress: bool = False,
    ) -> list[float]:
        """The reward of each conversation, in order.

        Args:
            conversations: messages, or mappings of `messages` and `tools`. Keys that are null are
                not sent, so that rows of tables can be given as they are.
            truncation: what to do with those that are too long.
            tools: for conversations without `tools`; JSON schemas of functions, or JSON text.
            progress: whether to show a bar.

        Raises:
            ScoringFailedError: some have none; it says which, and has the others' rewards.
            ServiceError: a whole request failed.
        """
        work = self._build_call(SCORE_ROUTE, conversations, truncation, tools=tools)
        return [
            result.reward for result in self._execute(work, progress).collect_results_or_raise()
        ]

    def results(
        self,
        conversations: Sequence[Conversation | ScoreError],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        progress: bool = False,
    ) -> list[Reward | ScoreError]:
        """A reward or an error for each conversation, in order; an error among them stays.

        The arguments are those of `score`.

        Raises:
            ServiceError: a whole request failed.
        """
        return self._execute(
            self._build_call(SCORE_ROUTE, conversations, truncation, tools=tools), progress
        ).collect_results()

    def compare(
        self,
        pairs: Sequence[Mapping[str, Any]],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        progress: bool = False,
    ) -> list[Comparison]:
        """Both rewards of each pair (`prompt`, `chosen`, `rejected`, `tools`), in order.

        Raises:
            ScoringFailedError: some pairs have none; it says which, and has the others' rewards.
            ServiceError: a whole request failed.
        """
        return self._execute(
            self._build_call(COMPARE_ROUTE, pairs, truncation, tools=tools), progress
        ).collect_results_or_raise()

    def rank(
        self,
        prompt: str | Conversation | None,
        responses: Sequence[str | Conversation],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        progress: bool = False,
    ) -> Ranking:
        """Rewards and ranks of the answers to one prompt, in the order in which they are given.

        Raises:
            ScoringFailedError: some have no reward; it says which, and has the others'.
            ServiceError: a whole request failed.
        """
        work = self._build_call(RANK_ROUTE, responses, truncation, tools=tools, prompt=prompt)
        return Ranking.from_rewards(
            [r.reward for r in self._execute(work, progress).collect_results_or_raise()]
        )

    def score_in_one_request(
        self, conversations: Sequence[Any], truncation: Truncation = "error"
    ) -> RequestResult:
        """Score conversations in a single request.

        Raises:
            ServiceError: it failed.
        """
        work = self._build_call(SCORE_ROUTE, conversations, truncation)
        for part in work.iter_shards(len(conversations), 2**62):
            self._run(work.send_shard(part, self._sender))
        fingerprint = work.fingerprints[0] if work.fingerprints else None
        return RequestResult(work.collect_results(), work.num_computed_tokens, fingerprint)

    def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post a body, `model` added, and return the answer as it is.

        Raises:
            ServiceError: the request failed.
        """
        content = encode_json(self._add_model(body)).encode()
        return self._run(self._sender.request("POST", route, content))

    def get(self, route: str) -> dict[str, Any]:
        """What the service tells at a route.

        Raises:
            ServiceError: the request failed.
        """
        return self._run(self._sender.request("GET", route))

    def close(self) -> None:
        """Let go of the connections."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._owner == os.getpid():
            pool.close()

    def _reset_pool(self) -> None:
        self._pool = None
        self._owner = os.getpid()

    def _get_pool(self) -> httpx.Client:
        with self._lock:
            if self._owner != os.getpid():
                # Of the process that this one was forked from: its connections are its own.
                self._reset_pool()
            if self._pool is None:
                self._pool = httpx.Client(**self._build_httpx_kwargs(httpx.HTTPTransport))
            return self._pool

    def _execute(self, call: BatchCall[R], progress: bool) -> BatchCall[R]:
        num_items = len(call.results)
        parts = call.iter_shards(self._max_items_per_shard(num_items), self.options.max_bytes)
        first, second = next(parts, None), next(parts, None)
        queue = _RequestQueue(itertools.chain(filter(None, (first, second)), parts))
        with show_progress(num_items, progress) as show:

            def take_parts() -> None:
                for part in queue:
                    self._run(call.send_shard(part, self._sender), queue.stop_event.wait)
                    show(len(part.indices))

            if second is None:
                take_parts()
            else:
                _run_in_threads(take_parts, self._total_concurrency(), queue)
        return self._check_fingerprints(call)

    def _run(self, steps: Steps[T], wait: Callable[[float], object] | None = None) -> T:
        wait = wait or threading.Event().wait
        pool = self._get_pool()
        came: httpx.Response | httpx.HTTPError | None = None
        try:
            while True:
                step = steps.send(came)
                if isinstance(step, Pause):
                    if wait(step.seconds):
                        raise ServiceError("another part of the same call failed; given up")
                    came = None
                    continue
                try:
                    with pool.stream(
                        step.method, step.url, content=step.content, headers=step.headers
                    ) as response:
                        body = self._build_response_body(response)
                        for piece in response.iter_raw():
                            body.feed(piece)
                    came = body.build_response()
                except httpx.HTTPError as error:
                    came = error
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()

    def __enter__(self) -> ScoringClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _RequestQueue(Iterator[RequestShard]):
    """Parts for several threads, until there are no more or one of them failed."""

    def __init__(self, shards: Iterator[RequestShard]) -> None:
        self.stop_event = threading.Event()
        self._shards = shards
        self._lock = threading.Lock()

    def __next__(self) -> RequestShard:
        with self._lock:
            if self.stop_event.is_set():
                raise StopIteration
            return next(self._shards)


def _run_in_threads(function: Callable[[], None], number: int, queue: _RequestQueue) -> None:
    """Run a function in threads; the first failure stops the queue and is raised."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)
            queue.stop_event.set()

    pool = ThreadPoolExecutor(number, thread_name_prefix="score")
    try:
        concurrent.futures.wait([pool.submit(guarded) for _ in range(number)])
    except BaseException:
        # Ctrl-C: what is in flight ends by itself, nobody waits for it.
        queue.stop_event.set()
        pool.shutdown(wait=False)
        raise
    pool.shutdown()
    if failures:
        raise failures[0]
