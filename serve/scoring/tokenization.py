"""Renders and tokenizes the conversations of requests, in slices, on one thread for each model.

Only one thread may use the tokenizer, so requests take turns, a slice at a time, in the order of
`serve.scheduler.fair_queue`. The thread is a daemon: a call that never returns must neither keep
the process from ending nor requests from being answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rm_core import ChatEncoder, Encoded, NotReadyError, ScoreError, SharedPrefix
from serve.scheduler.fair_queue import FairQueue, Flow
from serve.scoring.limits import (
    RequestOptions,
    check_num_messages,
    check_num_tokens,
    estimate_sizes,
)

T = TypeVar("T")

STUCK_AFTER_S = 120.0
"""A slice takes milliseconds, and a conversation that is hard to render at most seconds."""

# Conversations are tokenized in slices of so many, or of so many characters: the model starts on
# the first slice at once, and requests take turns between slices, after some 20 ms.
_MAX_SLICE_CONVERSATIONS = 64
_MAX_SLICE_CHARACTERS = 50_000


class RequestTokenizer:
    """An iterator over the tokenized slices of one request, in order.

    A conversation that cannot be tokenized gets an error in its position.

    Args:
        encoder: encoder of the model.
        thread: thread of the encoder.
        flow: flow of the request in the queue of the thread.
        conversations: conversations of the request.
        options: options of the request.

    Attributes:
        seconds: seconds that tokenization has taken so far, with the wait for the thread.

    Raises:
        RequestTooLargeError: the conversations have too many characters; or, from the iterator, too
            many tokens.
        NotReadyError: from the iterator, the thread is stuck.
    """

    def __init__(
        self,
        encoder: ChatEncoder,
        thread: EncoderThread,
        flow: Flow[EncoderTask],
        conversations: Sequence[object],
        options: RequestOptions,
    ) -> None:
        self.seconds = 0.0
        self._encoder = encoder
        self._thread = thread
        self._flow = flow
        self._options = options
        self._num_conversations = len(conversations)
        sizes = estimate_sizes(conversations, options.max_request_characters)
        self._slices = split_into_slices(conversations, sizes)
        self._shared = SharedPrefix()
        self._num_tokens = self._num_done = 0

    def __aiter__(self) -> RequestTokenizer:
        return self

    async def __anext__(self) -> list[Encoded | ScoreError]:
        for conversations, size in self._slices:
            started = time.perf_counter()
            encoded = await self._thread.run(
                self._flow, size, functools.partial(self._encode, conversations)
            )
            self.seconds += time.perf_counter() - started
            self._num_done += len(conversations)
            self._num_tokens += sum(e.num_tokens for e in encoded if isinstance(e, Encoded))
            check_num_tokens(
                self._num_tokens,
                self._options.max_request_tokens,
                self._num_done,
                self._num_conversations,
            )
            return encoded
        raise StopAsyncIteration

    def _encode(
        self, conversations: Sequence[object], check_cancelled: Callable[[], None]
    ) -> list[Encoded | ScoreError]:
        """Tokenize one slice. Runs on the encoder's thread."""
        options = self._options
        errors = [check_num_messages(c, options.max_messages) for c in conversations]
        accepted = [c for c, error in zip(conversations, errors, strict=True) if error is None]
        encoded = iter(
            self._encoder.encode_all(
                accepted,
                options.truncation,
                options.max_length,
                shared=self._shared,
                check_cancelled=check_cancelled,
            )
        )
        return [next(encoded) if error is None else error for error in errors]


def split_into_slices(
    conversations: Sequence[object], sizes: Sequence[int]
) -> Iterator[tuple[Sequence[object], int]]:
    """Split conversations into slices.

    Args:
        conversations: conversations of a request.
        sizes: size of each conversation in characters, from `estimate_sizes`.

    Yields:
        Each slice, in order, with its size in characters.
    """
    start, characters = 0, 0
    for stop, size in enumerate(sizes, start=1):
        characters += size
        if (
            stop - start == _MAX_SLICE_CONVERSATIONS
            or characters >= _MAX_SLICE_CHARACTERS
            or stop == len(sizes)
        ):
            yield conversations[start:stop], characters
            start, characters = stop, 0


class AbandonedError(Exception):
    """No request waits for this work any longer."""


@dataclass(eq=False, slots=True)
class EncoderTask:
    """Work of one request for the encoder's thread.

    Attributes:
        work: called on the thread, with a function that raises `AbandonedError` once no request
            waits for the work.
        size: characters that count against the share of the client.
        future: future of the event loop that gets the result.
        is_abandoned: set when no request waits.
    """

    work: Callable[[Callable[[], None]], Any]
    size: int
    future: asyncio.Future[Any]
    is_abandoned: threading.Event = field(default_factory=threading.Event)

    def check_cancelled(self) -> None:
        """Raise `AbandonedError` if no request waits."""
        if self.is_abandoned.is_set():
            raise AbandonedError

    @property
    def is_pending(self) -> bool:
        """Whether the work is still to be done."""
        return not self.future.done()


class EncoderThread:
    """Runs the tasks of many requests one after another. Belongs to one event loop.

    Args:
        alias: alias of the model.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._queue: FairQueue[EncoderTask] = FairQueue(
            get_size=lambda task: task.size, is_pending=lambda task: task.is_pending
        )
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._current: EncoderTask | None = None
        self._started_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        threading.Thread(
            target=_run_tasks, args=(self._tasks,), name=f"encoder-{alias}", daemon=True
        ).start()
        weakref.finalize(self, self._tasks.put, None)

    @property
    def is_busy(self) -> bool:
        """Whether the thread is running a task, or stuck in one."""
        return self._current is not None

    @contextlib.contextmanager
    def open_flow(self, client: str, priority: int = 0) -> Iterator[Flow[EncoderTask]]:
        """Open the flow of a request, and discard what is left of it at the end of the `with`."""
        flow: Flow[EncoderTask] = Flow(client, priority)
        try:
            yield flow
        finally:
            self._queue.discard(flow)

    async def run(
        self, flow: Flow[EncoderTask], size: int, work: Callable[[Callable[[], None]], T]
    ) -> T:
        """Run work when its turn comes, and return its result.

        If the call is cancelled, the work is dropped, or ends soon if it is running.

        Args:
            flow: flow of the request.
            size: characters that count against the share of the client.
            work: see `EncoderTask`.

        Raises:
            NotReadyError: the thread is stuck.
        """
        self.check_health()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # no result reaches a loop that was closed
            self._loop, self._current = loop, None
        task = EncoderTask(work, max(1, size), loop.create_future())
        self._queue.add(flow, [task])
        self._begin_next()
        try:
            result: T = await task.future
            return result
        finally:
            task.is_abandoned.set()

    def stall_reason(self) -> str | None:
        """Describe a task that has run for too long; None if there is none."""
        if self._current is None or self._loop is None:
            return None
        seconds = self._loop.time() - self._started_at
        if seconds < STUCK_AFTER_S:
            return None
        return (
            f"rendering or tokenizing some conversations for {seconds:.0f} s "
            f"(limit: {STUCK_AFTER_S:.0f} s)"
        )

    def check_health(self) -> None:
        """Return if the thread is not stuck.

        Raises:
            NotReadyError: the thread is stuck.
        """
        if reason := self.stall_reason():
            raise NotReadyError(
                f"model {self._alias!r} is stuck at {reason}; the gateway has to be restarted"
            )

    def _begin_next(self) -> None:
        if self._current is not None or not (tasks := self._queue.peek(1)):
            return
        assert self._loop is not None
        task = self._current = tasks[0]
        self._started_at = self._loop.time()
        self._timer = self._loop.call_later(STUCK_AFTER_S, self._fail_pending)
        self._tasks.put(functools.partial(_run_task, task, self._loop, self._finish))
        self._queue.mark_dispatched(task)

    def _finish(self, task: EncoderTask, result: Any, error: BaseException | None) -> None:
        """Resolve a finished task. Runs on the event loop."""
        assert self._timer is not None
        self._timer.cancel()
        self._current = None
        if not task.future.done():
            if error is None:
                task.future.set_result(result)
            else:
                task.future.set_exception(error)
        task.is_abandoned.set()
        self._begin_next()

    def _fail_pending(self) -> None:
        """Fail all tasks of a stuck thread, so that no request waits for it."""
        pending = self._queue.peek(1 << 62)
        for task in [self._current, *pending]:
            if task is not None and not task.future.done():
                try:
                    self.check_health()
                except NotReadyError as error:
                    task.future.set_exception(error)
        self._queue.prune()


def _run_tasks(tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """Run tasks until None comes. Runs on the encoder's thread."""
    while (task := tasks.get()) is not None:
        task()
        del task


def _run_task(
    task: EncoderTask,
    loop: asyncio.AbstractEventLoop,
    on_done: Callable[[EncoderTask, Any, BaseException | None], None],
) -> None:
    """Run one task. Runs on the encoder's thread."""
    result: Any = None
    failure: BaseException | None = None
    try:
        task.check_cancelled()
        result = task.work(task.check_cancelled)
    # Boundary of the thread: it goes on after any error, also after a panic in Rust.
    except BaseException as error:
        failure = error
        if isinstance(error, StopIteration | SystemExit | KeyboardInterrupt):
            # A future refuses StopIteration, and the other two would end the event loop.
            failure = RuntimeError(f"{type(error).__name__} on the encoder's thread")
    with contextlib.suppress(RuntimeError):  # the loop was closed
        loop.call_soon_threadsafe(on_done, task, result, failure)
