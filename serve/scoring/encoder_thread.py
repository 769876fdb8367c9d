"""The thread that renders and tokenizes for one model: whose turn it is, and whether it is stuck.

The tokenizer may be used by one thread alone, so requests take turns, a slice at a time, in the
order of `serve.scheduler.fair_queue`. The thread is a daemon: a call that never returns must not
keep the process from ending, nor requests from being answered. Lives on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rm_core import NotReadyError
from serve.scheduler.fair_queue import FairQueue, Flow

T = TypeVar("T")

STUCK_AFTER_S = 120.0
"""A slice takes some milliseconds, and a conversation that is hard to render at most seconds."""


class AbandonedError(Exception):
    """Nobody waits for this work any more."""


@dataclass(eq=False, slots=True)
class EncoderTask:
    """Some work of one request.

    Attributes:
        work: called on the thread, with a function that raises `AbandonedError` once nobody waits.
        size: what it counts against the share of its client, in characters.
        future: of the event loop.
        is_abandoned: set when nobody waits.
    """

    work: Callable[[Callable[[], None]], Any]
    size: int
    future: asyncio.Future[Any]
    is_abandoned: threading.Event = field(default_factory=threading.Event)

    def check_cancelled(self) -> None:
        """Raise `AbandonedError` if nobody waits."""
        if self.is_abandoned.is_set():
            raise AbandonedError

    @property
    def is_pending(self) -> bool:
        """Whether it is still to be done."""
        return not self.future.done()


class EncoderThread:
    """Does the work of many requests one after another.

    Args:
        alias: of the model.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._queue: FairQueue[EncoderTask] = FairQueue(
            get_size=lambda job: job.size, is_pending=lambda job: job.is_pending
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
        """Whether the thread is at work, or stuck."""
        return self._current is not None

    @contextlib.contextmanager
    def open_flow(self, client: str, priority: int = 0) -> Iterator[Flow[EncoderTask]]:
        """What a request has to do as a whole; see `serve.scheduler.fair_queue`."""
        flow: Flow[EncoderTask] = Flow(client, priority)
        try:
            yield flow
        finally:
            self._queue.discard(flow)

    async def run(
        self, flow: Flow[EncoderTask], size: int, work: Callable[[Callable[[], None]], T]
    ) -> T:
        """The result of some work, once it was its turn; cancelled, it is dropped or ends soon.

        Args:
            flow: of the request.
            size: what it counts against the share of its client, in characters.
            work: see `Job`.

        Raises:
            NotReadyError: the thread is stuck.
        """
        self.check_health()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # what one that was closed waited for is told to nobody
            self._loop, self._current = loop, None
        job = EncoderTask(work, max(1, size), loop.create_future())
        self._queue.add(flow, [job])
        self._begin_next()
        try:
            result: T = await job.future
            return result
        finally:
            job.is_abandoned.set()

    def stall_reason(self) -> str | None:
        """What there is to say of work that runs for too long; None while all is well."""
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
            NotReadyError: it is.
        """
        if why := self.stall_reason():
            raise NotReadyError(
                f"model {self._alias!r} is stuck at {why}; the gateway has to be restarted"
            )

    def _begin_next(self) -> None:
        if self._current is not None or not (jobs := self._queue.peek(1)):
            return
        assert self._loop is not None
        job = self._current = jobs[0]
        self._started_at = self._loop.time()
        self._timer = self._loop.call_later(STUCK_AFTER_S, self._fail_pending)
        self._tasks.put(functools.partial(_run_task, job, self._loop, self._finish))
        self._queue.mark_dispatched(job)

    def _finish(self, job: EncoderTask, result: Any, error: BaseException | None) -> None:
        """On the event loop, once the thread has done some work."""
        assert self._timer is not None
        self._timer.cancel()
        self._current = None
        if not job.future.done():
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)
        job.is_abandoned.set()
        self._begin_next()

    def _fail_pending(self) -> None:
        """Whoever waits for a stuck thread must not be stuck with it."""
        waiting = self._queue.peek(1 << 62)
        for job in [self._current, *waiting]:
            if job is not None and not job.future.done():
                try:
                    self.check_health()
                except NotReadyError as error:
                    job.future.set_exception(error)
        self._queue.prune()


def _run_tasks(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """On the thread."""
    while (job := jobs.get()) is not None:
        job()
        del job


def _run_task(
    job: EncoderTask,
    loop: asyncio.AbstractEventLoop,
    on_done: Callable[[EncoderTask, Any, BaseException | None], None],
) -> None:
    """On the thread."""
    result: Any = None
    failure: BaseException | None = None
    try:
        job.check_cancelled()
        result = job.work(job.check_cancelled)
    # The border of the thread: it goes on, whatever it was, also after a panic in Rust.
    except BaseException as error:
        failure = error
        if isinstance(error, StopIteration | SystemExit | KeyboardInterrupt):
            # A future takes no StopIteration, and the others would end the event loop.
            failure = RuntimeError(f"{type(error).__name__} on the encoder's thread")
    with contextlib.suppress(RuntimeError):  # the loop was closed
        loop.call_soon_threadsafe(on_done, job, result, failure)
