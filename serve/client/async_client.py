"""The asynchronous client of the native routes, with the methods of the synchronous client."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx

from serve.client import operations
from serve.client.base import BaseClient, build_options, show_progress
from serve.client.operations import Batch, Operation, copy_documentation
from serve.client.sansio import BatchCall, Pause, RequestShard, Steps

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


def _asynchronous(
    operation: Callable[Concatenate[Any, P], Operation[T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return the coroutine method that performs an operation."""

    async def method(self: AsyncScoringClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        work = operation(self, *args, **kwargs)
        if isinstance(work, Batch):
            result: T = work.read(await self._execute(work.call, work.progress))
            return result
        return await self._run(work)

    copy_documentation(operation, method)
    return method


class AsyncScoringClient(BaseClient):
    """`ScoringClient` for event loops; an async context manager.

    A client may be used by any number of tasks at a time, and in several event loops: each loop
    has its own connections. `close` closes the connections of the running loop.

    Args:
        url: address of the service, or several addresses.
        model: alias of the model; None if the service has one model.
        options: the other fields of `ClientOptions`, by name.

    Raises:
        ServiceError: `url` is not a valid address, or `api_key` is not a valid key.
    """

    def __init__(self, url: str | Sequence[str], model: str | None = None, **options: Any) -> None:
        super().__init__(build_options(url, model, **options))
        self._reset_pool()

    score = _asynchronous(operations.score)
    score_models = _asynchronous(operations.score_models)
    results = _asynchronous(operations.results)
    score_with_usage = _asynchronous(operations.score_with_usage)
    steps = _asynchronous(operations.steps)
    judge = _asynchronous(operations.judge)
    score_turns = _asynchronous(operations.score_turns)
    count_tokens = _asynchronous(operations.count_tokens)
    compare = _asynchronous(operations.compare)
    rank = _asynchronous(operations.rank)
    sleep = _asynchronous(operations.sleep)
    wake = _asynchronous(operations.wake)
    reload = _asynchronous(operations.reload)
    post = _asynchronous(operations.post)
    get = _asynchronous(operations.get)

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()

    def _reset_pool(self) -> None:
        self._pools: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    def _get_pool(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        with self._lock:
            # The pools of closed loops can be neither used nor closed.
            self._pools = {key: pool for key, pool in self._pools.items() if not key.is_closed()}
            if loop not in self._pools:
                self._pools[loop] = httpx.AsyncClient(
                    **self._build_httpx_kwargs(httpx.AsyncHTTPTransport)
                )
            return self._pools[loop]

    async def _execute(self, call: BatchCall[R], progress: bool) -> BatchCall[R]:
        num_items, shards = len(call.results), self._iter_shards(call)
        with show_progress(num_items, progress) as advance:

            async def send_shards(queue: Iterator[RequestShard]) -> None:
                for shard in queue:
                    await self._run(call.send_shard(shard, self._sender))
                    advance(len(shard.indices))

            first, second = next(shards, None), next(shards, None)
            queue = itertools.chain(filter(None, (first, second)), shards)
            num_tasks = 1 if second is None else self._total_concurrency()
            tasks = [asyncio.create_task(send_shards(queue)) for _ in range(num_tasks)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        if self._check_fingerprints(call):
            return call
        return await self._execute(call.restart(), progress)

    async def _run(self, steps: Steps[T]) -> T:
        pool = self._get_pool()
        outcome: httpx.Response | httpx.HTTPError | None = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    outcome = None
                    continue
                try:
                    async with pool.stream(
                        step.method, step.url, content=step.content, headers=step.headers
                    ) as response:
                        body = self._build_response_body(response)
                        async for data in response.aiter_raw():
                            body.feed(data)
                    outcome = body.build_response()
                except httpx.HTTPError as error:
                    outcome = error
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()

    async def __aenter__(self) -> AsyncScoringClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
