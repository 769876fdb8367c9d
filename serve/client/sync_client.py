"""The synchronous client of the native routes."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx

from serve.client import operations
from serve.client.base import BaseClient, build_options, show_progress
from serve.client.errors import ServiceError
from serve.client.operations import Batch, Operation, copy_documentation
from serve.client.sansio import BatchCall, Pause, RequestShard, Steps

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


def _blocking(
    operation: Callable[Concatenate[Any, P], Operation[T]],
) -> Callable[Concatenate[Any, P], T]:
    """Return the method that performs an operation and waits for its result."""

    def method(self: ScoringClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        work = operation(self, *args, **kwargs)
        if isinstance(work, Batch):
            result: T = work.read(self._execute(work.call, work.progress))
            return result
        return self._run(work)

    copy_documentation(operation, method)
    return method


class ScoringClient(BaseClient):
    """Client of one or several running services that serve the same model. A context manager.

    A request that is rejected temporarily, or lost with its connection, is retried under the same
    `X-Request-Id`, at another address if there is one. Each retry is logged as a warning. Scoring
    twice is harmless. A client may be pickled and used from several threads and in forked
    processes; threads share its connections, processes do not.

    Args:
        url: address of the service, such as `http://127.0.0.1:8000`, or several addresses.
        model: alias of the model; None if the service has one model.
        options: the other fields of `ClientOptions`, by name: `api_key`, `retry_timeout_s`,
            `timeout_s`, `max_concurrency`, ...

    Raises:
        ServiceError: `url` is not a valid address, or `api_key` is not a valid key.
    """

    _pool: httpx.Client | None
    _owner: int

    def __init__(self, url: str | Sequence[str], model: str | None = None, **options: Any) -> None:
        super().__init__(build_options(url, model, **options))
        self._reset_pool()

    score = _blocking(operations.score)
    score_models = _blocking(operations.score_models)
    results = _blocking(operations.results)
    score_with_usage = _blocking(operations.score_with_usage)
    steps = _blocking(operations.steps)
    judge = _blocking(operations.judge)
    score_turns = _blocking(operations.score_turns)
    count_tokens = _blocking(operations.count_tokens)
    compare = _blocking(operations.compare)
    rank = _blocking(operations.rank)
    sleep = _blocking(operations.sleep)
    wake = _blocking(operations.wake)
    reload = _blocking(operations.reload)
    post = _blocking(operations.post)
    get = _blocking(operations.get)

    def close(self) -> None:
        """Close the connections."""
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
                # After a fork, leave the parent's connections to the parent.
                self._reset_pool()
            if self._pool is None:
                self._pool = httpx.Client(**self._build_httpx_kwargs(httpx.HTTPTransport))
            return self._pool

    def _execute(self, call: BatchCall[R], progress: bool) -> BatchCall[R]:
        num_items, shards = len(call.results), self._iter_shards(call)
        first, second = next(shards, None), next(shards, None)
        queue = _RequestQueue(itertools.chain(filter(None, (first, second)), shards))
        with show_progress(num_items, progress) as advance:

            def send_shards() -> None:
                for shard in queue:
                    self._run(call.send_shard(shard, self._sender), queue.stop_event.wait)
                    advance(len(shard.indices))

            if second is None:
                send_shards()
            else:
                _run_in_threads(send_shards, self._total_concurrency(), queue)
        if self._check_fingerprints(call):
            return call
        return self._execute(call.restart(), progress)

    def _run(self, steps: Steps[T], wait: Callable[[float], object] | None = None) -> T:
        wait = wait or threading.Event().wait
        pool = self._get_pool()
        outcome: httpx.Response | httpx.HTTPError | None = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, Pause):
                    if wait(step.seconds):
                        raise ServiceError(
                            "another request of the same call failed; this one was abandoned"
                        )
                    outcome = None
                    continue
                try:
                    with pool.stream(
                        step.method, step.url, content=step.content, headers=step.headers
                    ) as response:
                        body = self._build_response_body(response)
                        for data in response.iter_raw():
                            body.feed(data)
                    outcome = body.build_response()
                except httpx.HTTPError as error:
                    outcome = error
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()

    def __enter__(self) -> ScoringClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _RequestQueue(Iterator[RequestShard]):
    """Shards for several threads, until there are none left or one thread has failed."""

    def __init__(self, shards: Iterator[RequestShard]) -> None:
        self.stop_event = threading.Event()
        self._shards = shards
        self._lock = threading.Lock()

    def __next__(self) -> RequestShard:
        with self._lock:
            if self.stop_event.is_set():
                raise StopIteration
            return next(self._shards)


def _run_in_threads(function: Callable[[], None], num_threads: int, queue: _RequestQueue) -> None:
    """Run a function in threads; the first exception stops the queue and is raised."""
    failures: list[BaseException] = []

    def run_and_catch() -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)
            queue.stop_event.set()

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="score")
    try:
        concurrent.futures.wait([pool.submit(run_and_catch) for _ in range(num_threads)])
    except BaseException:
        # On Ctrl-C, do not wait for the requests in flight.
        queue.stop_event.set()
        pool.shutdown(wait=False)
        raise
    pool.shutdown()
    if failures:
        raise failures[0]
