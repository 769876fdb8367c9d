"""The synchronous client of the native routes."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

import httpx

from rm_core import Aggregation, Reward, ScoreError, Truncation
from rm_core.types import Conversation
from serve.client.base import BaseClient, build_options, refuse_options, show_progress
from serve.client.errors import ServiceError
from serve.client.responses import (
    Comparison,
    ModelRewards,
    Ranking,
    ResultsWithUsage,
    StepRewards,
    TurnRewards,
    fill_models,
)
from serve.client.sansio import (
    COMPARE_ROUTE,
    JUDGE_ROUTE,
    RANK_ROUTE,
    RENDER_ROUTE,
    SCORE_ROUTE,
    STEPS_ROUTE,
    TURNS_ROUTE,
    BatchCall,
    Pause,
    RequestShard,
    Steps,
    encode_json,
)

T = TypeVar("T")
R = TypeVar("R")


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

    @overload
    def score(
        self,
        conversations: Sequence[Conversation],
        truncation: Truncation = "error",
        *,
        models: None = None,
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
    ) -> list[float]: ...

    @overload
    def score(
        self,
        conversations: Sequence[Conversation],
        truncation: Truncation = "error",
        *,
        models: Sequence[str],
        combine: Mapping[str, float] | None = None,
        calibrated: bool = False,
        clip: tuple[float, float] | None = None,
        turns: Literal["last", "all"] = "last",
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
    ) -> list[ModelRewards]: ...

    def score(
        self,
        conversations: Sequence[Conversation],
        truncation: Truncation = "error",
        *,
        models: Sequence[str] | None = None,
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
        **options: Any,
    ) -> list[float] | list[ModelRewards]:
        """Return the reward of each conversation, in order.

        Args:
            conversations: lists of messages, or mappings of `messages` and `tools`. Null keys are
                not sent, so that rows of tables can be passed unchanged.
            truncation: what to do with conversations that are too long.
            models: several models that score side by side; see `score_models`.
            tools: tools of conversations without `tools`: JSON schemas of functions, or JSON text.
            aggregation: how a step model's rewards of steps become the reward.
            progress: whether to show a progress bar.
            **options: with `models`: the other options of `score_models`.

        Raises:
            ScoringFailedError: some conversations have no reward; the error names them and holds
                the rewards of the others. With `models`, a failure is in the result instead.
            ServiceError: a whole request failed.
            TypeError: an option is unknown, or needs `models`.
        """
        if models is not None:
            return self.score_models(
                conversations,
                models,
                truncation,
                tools=tools,
                aggregation=aggregation,
                progress=progress,
                **options,
            )
        refuse_options(options)
        call = self._build_call(
            SCORE_ROUTE, conversations, truncation, tools=tools, aggregation=aggregation
        )
        return [
            result.reward for result in self._execute(call, progress).collect_results_or_raise()
        ]

    def score_models(
        self,
        conversations: Sequence[Conversation | ScoreError],
        models: Sequence[str],
        truncation: Truncation = "error",
        *,
        combine: Mapping[str, float] | None = None,
        calibrated: bool = False,
        clip: tuple[float, float] | None = None,
        turns: Literal["last", "all"] = "last",
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
    ) -> list[ModelRewards]:
        """Return the rewards of several models for each conversation, in order.

        One request has a conversation once, and a model may fail alone.

        Args:
            conversations: see `score`; a `ScoreError` among them becomes the error of each model.
            models: aliases of the models; that of the client is not used.
            truncation: what to do with conversations that are too long.
            combine: weight by model, for the sum `ModelRewards.reward`.
            calibrated: whether `combine` takes the calibrated rewards.
            clip: least and greatest value that `combine` takes of a model, before the weight.
            turns: `all`: also the reward after each message of the assistant, of classifiers.
            tools: see `score`.
            aggregation: see `score`.
            progress: whether to show a progress bar.

        Raises:
            ServiceError: a whole request failed.
        """
        call = self._build_models_call(
            conversations,
            models,
            truncation,
            combine=combine,
            calibrated=calibrated,
            clip=clip,
            turns=turns,
            tools=tools,
            aggregation=aggregation,
        )
        results = self._execute(call, progress).collect_results()
        return [fill_models(result, models) for result in results]

    def results(
        self,
        conversations: Sequence[Conversation | ScoreError],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
    ) -> list[Reward | ScoreError]:
        """Return a reward or an error for each conversation, in order.

        A `ScoreError` among the conversations is returned in its position. The arguments are
        those of `score`.

        Raises:
            ServiceError: a whole request failed.
        """
        return self.score_with_usage(
            conversations, truncation, tools=tools, aggregation=aggregation, progress=progress
        ).results

    def score_with_usage(
        self,
        conversations: Sequence[Conversation | ScoreError],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
    ) -> ResultsWithUsage:
        """Return what `results` returns, and the number of tokens that were computed for it."""
        call = self._build_call(
            SCORE_ROUTE, conversations, truncation, tools=tools, aggregation=aggregation
        )
        self._execute(call, progress)
        return ResultsWithUsage(
            call.collect_results(), call.num_computed_tokens, call.num_cached_tokens
        )

    def steps(
        self,
        items: Sequence[Mapping[str, Any] | ScoreError],
        aggregation: Aggregation = "last",
        *,
        progress: bool = False,
    ) -> list[StepRewards | ScoreError]:
        """Return the rewards of the steps of each solution or an error, in order; of a step model.

        Args:
            items: each `prompt` (text or messages) with `response`, which is divided into steps as
                the checkpoint's authors do, or with `steps`, which are taken as they are.
            aggregation: how the rewards of steps become `reward`.
            progress: whether to show a progress bar.

        Raises:
            ServiceError: a whole request failed; `error_code` is `wrong_kind` if the model is not
                a step model.
        """
        call = self._build_call(STEPS_ROUTE, items, "error", aggregation=aggregation)
        return self._execute(call, progress).collect_results()

    def judge(
        self,
        pairs: Sequence[Mapping[str, Any] | ScoreError],
        orders: Literal["both", "given"] = "both",
        truncation: Truncation = "error",
        *,
        progress: bool = False,
    ) -> list[Comparison | ScoreError]:
        """Return a judge's verdict on each pair or an error, in order.

        Args:
            pairs: each `prompt`, `chosen` and `rejected`, or two whole conversations.
            orders: `both`: the judge reads the answers of a pair in both orders, and the margin is
                the mean; `given`: with `chosen` first only, for half the tokens.
            truncation: what to do with pairs that are too long.
            progress: whether to show a progress bar.

        Raises:
            ServiceError: a whole request failed, or the model is not a judge.
        """
        call = self._build_call(JUDGE_ROUTE, pairs, truncation, orders=orders)
        return self._execute(call, progress).collect_results()

    def score_turns(
        self,
        conversations: Sequence[Conversation | ScoreError],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        progress: bool = False,
    ) -> list[TurnRewards | ScoreError]:
        """Return the reward after each of the assistant's messages, for each conversation in order.

        The parts of a conversation share their beginnings, so that its tokens are computed once.
        The arguments are those of `score`.

        Raises:
            ServiceError: a whole request failed; `error_code` is `wrong_kind` if the model is not
                a classifier.
        """
        call = self._build_call(TURNS_ROUTE, conversations, truncation, tools=tools, turns="all")
        return self._execute(call, progress).collect_results()

    def count_tokens(
        self, conversations: Sequence[Conversation], truncation: Truncation = "error"
    ) -> list[int | ScoreError]:
        """Return the number of tokens of each conversation, or its error, without scoring it.

        Raises:
            ServiceError: a whole request failed.
        """
        call = self._build_call(RENDER_ROUTE, conversations, truncation)
        return self._execute(call, progress=False).collect_results()

    def compare(
        self,
        pairs: Sequence[Mapping[str, Any]],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
    ) -> list[Comparison]:
        """Return both rewards of each pair (`prompt`, `chosen`, `rejected`, `tools`), in order.

        A judge gives a verdict on each pair instead of rewards; see `judge`.

        Raises:
            ScoringFailedError: some pairs have no rewards; the error names them and holds the
                results of the others.
            ServiceError: a whole request failed.
        """
        call = self._build_call(
            COMPARE_ROUTE, pairs, truncation, tools=tools, aggregation=aggregation
        )
        return self._execute(call, progress).collect_results_or_raise()

    def rank(
        self,
        prompt: str | Conversation | None,
        responses: Sequence[str | Conversation | ScoreError],
        truncation: Truncation = "error",
        *,
        tools: Any = None,
        aggregation: Aggregation = "last",
        progress: bool = False,
    ) -> Ranking:
        """Return rewards and ranks of the answers to one prompt, in the order of the answers.

        A judge compares each answer with all others, so all have to fit into one request.

        Raises:
            ScoringFailedError: some answers have no reward; the error names them and holds the
                rewards of the others.
            ServiceError: a whole request failed.
        """
        call = self._build_call(
            RANK_ROUTE, responses, truncation, tools=tools, aggregation=aggregation, prompt=prompt
        )
        return self._execute(call, progress).build_ranking()

    def sleep(self, level: Literal[1, 2] = 1) -> list[dict[str, Any]]:
        """Put the model to sleep at every address, so that others may use its device.

        Args:
            level: 1 keeps the weights in the host's memory, 2 drops them.

        Returns:
            The answer of each address: `state`, `sleep_level`, `seconds`, `freed_bytes`,
            `fingerprint`.

        Raises:
            ServiceError: a request failed; addresses before it have done what was asked.
        """
        return self._run(self._control("sleep", level=level))

    def wake(self) -> list[dict[str, Any]]:
        """Wake the model at every address; see `sleep`."""
        return self._run(self._control("wake"))

    def reload(self, source: str, version: str | None = None) -> list[dict[str, Any]]:
        """Replace the model's weights at every address; see `sleep`.

        The client expects the fingerprint of the new weights from then on.

        Args:
            source: folder that the service can read, or ORG/NAME@REVISION on the hub.
            version: name of the weights in the fingerprint; None: the folder's name or the commit.
        """
        return self._run(self._control("reload", source=source, version=version))

    def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post a body with `model` added, and return the response unchanged.

        Raises:
            ServiceError: the request failed.
        """
        content = encode_json(self._add_model(body)).encode()
        return self._run(self._sender.request("POST", route, content))

    def get(self, route: str) -> dict[str, Any]:
        """Return the JSON object that a GET request to a route returns.

        Raises:
            ServiceError: the request failed.
        """
        return self._run(self._sender.request("GET", route))

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
