"""Renders and tokenizes the conversations of requests, within their limits, in slices.

Only one thread may use the tokenizer, so requests take turns on it, a slice at a time, in the order
of `serve.scheduler.fair_queue`. The thread is a daemon: a call that never returns must neither keep
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
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import is_not
from typing import Any, NamedTuple, TypeVar

from rm_core import (
    Aggregation,
    ConversationTooLongError,
    Encoded,
    Encoder,
    InputError,
    InvalidConversationError,
    JudgePair,
    NotReadyError,
    PrerenderedText,
    PrerenderedTokens,
    ScoreError,
    SharedPrefix,
    StepItem,
    Truncation,
    get_messages,
)
from rm_core.inputs.conversations import get_image_source
from serve.errors import BadRequestError, RequestTooLargeError
from serve.scheduler.fair_queue import FairQueue, Flow
from serve.scoring.image_memory import ImageHold
from serve.telemetry.logging import ANONYMOUS

T = TypeVar("T")

STUCK_AFTER_S = 120.0
"""A slice takes milliseconds, and a conversation that is hard to render at most seconds."""

# Conversations are tokenized in slices of so many, or of so many characters: the model starts on
# the first slice at once, and requests take turns between slices, after some 20 ms.
_MAX_SLICE_CONVERSATIONS = 64
_MAX_SLICE_CHARACTERS = 50_000
# Approximate number of characters that a template writes around a message.
_CHARACTERS_PER_MESSAGE = 16
# An image takes as long as so much text: to decode it, and to put its token ids into one more
# conversation right after that, for which the encoder still has it.
_CHARACTERS_PER_IMAGE = _MAX_SLICE_CHARACTERS
_CHARACTERS_PER_RECURRENCE = 2_000


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a request asks for, and its limits."""

    client: str = ANONYMOUS  # client whose fair share the request counts toward
    priority: int = 0  # of the client's requests, those with a lower value go first
    truncation: Truncation = "error"  # what to do with conversations that are too long
    # Maximum number of tokens in a conversation, if less than the model's limit.
    max_length: int | None = None
    aggregation: Aggregation = "last"  # how a step model's rewards of steps become the reward
    # Whether the model is read at each token, and its outputs are returned raw.
    every_token: bool = False
    keep_encoded: bool = False  # whether the result has the encoded conversations
    max_messages: int = 1_000  # see the setting
    max_queued_tokens: int = 2_000_000  # see the setting
    # Maximum of all conversations together; a prompt counts for each of its answers.
    max_request_characters: int = 268_435_456
    max_request_tokens: int = 100_000_000  # maximum of all conversations together
    # Maximum of all conversations together: a step model is read at every step, and each value
    # takes time of the gateway.
    max_request_readouts: int = 262_144
    max_request_images: int = 256  # see the setting
    max_queued_image_bytes: int = 2**30  # see the setting


def check_num_conversations(number: int, limit: int, noun: str = "conversations") -> None:
    """Refuse a request with more conversations, called `noun`, than the setting; a pair is two."""
    if number > limit:
        raise BadRequestError(
            f"the request has {number:,} {noun} and the limit is {limit:,}; split it into "
            "several requests, or raise the service's setting `max_conversations`"
        )


def check_num_messages(conversation: object, limit: int) -> ScoreError | None:
    """Return the error of a conversation as it was sent that has too many messages, or None."""
    if isinstance(conversation, StepItem | JudgePair):
        conversation = conversation.prompt
    messages = get_messages(conversation)
    if not isinstance(messages, list | tuple) or len(messages) <= limit:
        return None
    return ScoreError.from_exception(
        InvalidConversationError(
            f"the conversation has {len(messages):,} messages and the limit is {limit:,}; "
            "drop the oldest ones, or raise the service's setting `max_messages`"
        )
    )


class RequestTokenizer:
    """An iterator over the tokenized slices of one request, in order.

    A conversation that cannot be tokenized gets an error in its position. `hold` has the decoded
    images of the request; None if the model reads no images.

    Attributes:
        seconds: seconds that tokenization has taken so far, with the wait for the thread.

    Raises:
        RequestTooLargeError: the conversations have too many characters or images; or, from the
            iterator, too many tokens.
        NotReadyError: from the iterator, the thread is stuck.
    """

    def __init__(
        self,
        encoder: Encoder,
        thread: EncoderThread,
        flow: Flow[EncoderTask],
        conversations: Sequence[object],
        options: RequestOptions,
        hold: ImageHold | None = None,
        max_image_bytes: int = 0,
    ) -> None:
        self.seconds = 0.0
        self._encoder = encoder
        self._thread = thread
        self._flow = flow
        self._options = options
        self._hold = hold
        self._max_image_bytes = max_image_bytes
        self._num_conversations = len(conversations)
        sizes = estimate_sizes(
            conversations, options.max_request_characters, options.max_request_images
        )
        self._slices = split_into_slices(conversations, sizes)
        self._shared = SharedPrefix()
        if options.every_token:  # before any of the token ids are scored
            lengths = [len(c.input_ids) for c in conversations if isinstance(c, PrerenderedTokens)]
            self._check_num_readouts(sum(lengths), len(lengths))

    async def __aiter__(self) -> AsyncIterator[list[Encoded | ScoreError]]:
        limit = self._options.max_request_tokens
        num_done = num_tokens = num_readouts = 0
        for conversations, size in self._slices:
            started = time.perf_counter()
            reserved = size.num_images * self._max_image_bytes
            if self._hold is not None:
                await self._hold.reserve(reserved)
            work = functools.partial(self._encode, conversations)
            encoded = await self._thread.run(self._flow, size.num_characters, work)
            if self._hold is not None:
                self._hold.add(count_image_bytes(encoded) - reserved)
            self.seconds += time.perf_counter() - started
            num_done += len(conversations)
            num_tokens += sum(e.num_tokens for e in encoded if isinstance(e, Encoded))
            if num_tokens > limit:
                raise RequestTooLargeError(
                    f"the first {num_done:,} of the request's {self._num_conversations:,} "
                    f"conversations have {num_tokens:,} tokens and the limit is {limit:,}; split "
                    "it into several requests"
                )
            num_readouts += sum(len(e.readouts) for e in encoded if isinstance(e, Encoded))
            self._check_num_readouts(num_readouts, num_done)
            yield encoded
            del encoded  # not kept while this request waits for memory

    def _check_num_readouts(self, num_readouts: int, num_done: int) -> None:
        limit = self._options.max_request_readouts
        if num_readouts > limit:
            raise RequestTooLargeError(
                f"the first {num_done:,} of the request's {self._num_conversations:,} items are "
                f"read at {num_readouts:,} tokens and the limit is {limit:,}; split it into "
                "several requests"
            )

    def _encode(
        self, conversations: Sequence[object], check_cancelled: Callable[[], None]
    ) -> list[Encoded | ScoreError]:
        """Tokenize one slice. Runs on the encoder's thread."""
        options = self._options
        if options.every_token and all(isinstance(c, PrerenderedTokens) for c in conversations):
            return [self._take_tokens(c) for c in conversations]
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
        results = [next(encoded) if error is None else error for error in errors]
        return [read_every_token(r) for r in results] if options.every_token else results

    def _take_tokens(self, conversation: object) -> Encoded | ScoreError:
        """Return token ids as they are, to be read at each of them."""
        assert isinstance(conversation, PrerenderedTokens)
        ids, limit = conversation.input_ids, self._options.max_length or self._encoder.max_length
        try:
            if len(ids) > limit:
                raise ConversationTooLongError(
                    f"the input has {len(ids)} tokens and the limit is {limit}; a value for each "
                    "token needs all of them: shorten it"
                )
            self._encoder.prerendered_reader.check_ids(ids)
        except InputError as error:
            return ScoreError.from_exception(error)
        return Encoded("", ids, tuple(range(len(ids))), input_format="tokens:every-token")


def read_every_token(item: Encoded | ScoreError) -> Encoded | ScoreError:
    """Return an encoded conversation that is read at each of its tokens."""
    if isinstance(item, ScoreError):
        return item
    return replace(item, readouts=tuple(range(item.num_tokens)))


def count_image_bytes(encoded: Iterable[Encoded | ScoreError]) -> int:
    """Return the memory of the decoded images of conversations; shared images count once."""
    images = {
        id(placed.image): placed.image.num_bytes
        for item in encoded
        if isinstance(item, Encoded)
        for placed in item.images
    }
    return sum(images.values())


def drop_pixels(item: Encoded | ScoreError) -> Encoded | ScoreError:
    """Return an encoded conversation without the pixels of its images."""
    if isinstance(item, ScoreError) or not item.images:
        return item
    images = [replace(p, image=replace(p.image, pixels=b"")) for p in item.images]
    return replace(item, images=tuple(images))


class InputSize(NamedTuple):
    """Estimated size of a conversation, or of a slice."""

    num_characters: int  # characters (or token ids), with a fixed number for an image
    num_images: int = 0  # images that may be decoded
    num_new: int = 0  # images that the conversation before does not have


def estimate_sizes(
    conversations: Sequence[object], limit: int, max_images: int = 256
) -> list[InputSize]:
    """Estimate the size of each conversation; shared text is counted each time."""
    sizes: list[InputSize] = []
    total = 0
    tools_sizes: dict[int, int] = {}
    previous: Sequence[object] = ()
    judge_prompt: object = None
    prompt_size = judge_prompt_size = 0
    all_images: set[object] = set()
    prompt_images: set[object] = set()
    previous_images: set[object] = set()
    for conversation in conversations:
        images: set[object] = set()
        if isinstance(conversation, PrerenderedText):
            size = len(conversation.text)
        elif isinstance(conversation, PrerenderedTokens):
            # A token id is checked and decoded as fast as a character.
            size = len(conversation.input_ids)
        elif isinstance(conversation, StepItem):
            texts = [conversation.prompt, conversation.steps, conversation.response]
            size = _count_characters(texts)
        elif isinstance(conversation, JudgePair):
            # Pairs of a group of answers have one prompt, the same object each time.
            if conversation.prompt is not judge_prompt:
                judge_prompt = conversation.prompt
                judge_prompt_size = _count_characters(judge_prompt)
            size = judge_prompt_size + len(conversation.first) + len(conversation.second)
        else:
            messages = get_messages(conversation)
            messages = messages if isinstance(messages, list | tuple) else ()
            # Answers to one prompt: the prompt's messages are the same objects each time.
            if len(messages) != len(previous) or any(map(is_not, messages[:-1], previous[:-1])):
                prompt_images = set()
                prompt_size = _estimate_message_sizes(messages[:-1], prompt_images)
            previous = messages
            images |= prompt_images
            size = prompt_size + _estimate_message_sizes(messages[-1:], images)
            if isinstance(conversation, Mapping) and (tools := conversation.get("tools")):
                # Tools are rendered for each conversation, but all of a request may have one list.
                if id(tools) not in tools_sizes:
                    tools_sizes[id(tools)] = _count_characters(tools)
                size += tools_sizes[id(tools)]
        num_new = len(images - previous_images)
        size += _CHARACTERS_PER_IMAGE * num_new
        previous_images = images
        all_images |= images
        sizes.append(InputSize(size, len(images), num_new))
        total += size
        if total > limit:
            raise RequestTooLargeError(
                f"the request's {len(conversations):,} conversations have more than {limit:,} "
                "characters together, a prompt counted for each of its answers; split it into "
                "several requests"
            )
        if len(all_images) > max_images:
            raise RequestTooLargeError(
                f"the first {len(sizes):,} of the request's {len(conversations):,} conversations "
                f"have {len(all_images):,} different images and the limit is {max_images:,}; split "
                "it into several requests, or raise the service's setting `max_request_images`"
            )
    return sizes


def _estimate_message_sizes(messages: Sequence[object], images: set[object]) -> int:
    """Estimate the characters of messages, and add their images to a set.

    Messages of another shape are refused quickly. The data of an image does not count.
    """
    size = _CHARACTERS_PER_MESSAGE * len(messages)
    for message in messages:
        if not isinstance(message, dict):
            continue
        content = message.get("content")
        # Otherwise there are content parts, or keys that the template may render too.
        if isinstance(content, str) and len(message) <= 2:
            size += len(content)
        elif isinstance(content, list | tuple):
            size += _count_characters([v for k, v in message.items() if k != "content"])
            for part in content:
                source = get_image_source(part)
                if source is None:
                    size += _count_characters(part)
                else:
                    size += _CHARACTERS_PER_RECURRENCE
                    images.add(source if isinstance(source, str | bytes) else id(source))
        else:
            size += _count_characters(message)
    return size


def _count_characters(value: object) -> int:
    """Count the characters of all strings in a value, including keys."""
    size, stack = 0, [value]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            size += len(node)
        elif isinstance(node, Mapping):
            stack += [*node.keys(), *node.values()]
        elif isinstance(node, list | tuple):
            stack += node
    return size


def split_into_slices(
    conversations: Sequence[object], sizes: Sequence[InputSize]
) -> Iterator[tuple[Sequence[object], InputSize]]:
    """Split conversations into slices; yield each in order, with its size.

    A conversation with new images ends its slice, so that a slice has the images of two
    conversations at most.
    """
    start = num_characters = num_images = 0
    for stop, size in enumerate(sizes, start=1):
        num_characters += size.num_characters
        # The first conversation's images may have to be decoded again.
        num_images += size.num_new if num_images else size.num_images
        if (
            stop - start == _MAX_SLICE_CONVERSATIONS
            or num_characters >= _MAX_SLICE_CHARACTERS
            or stop == len(sizes)
        ):
            yield conversations[start:stop], InputSize(num_characters, num_images)
            start, num_characters, num_images = stop, 0, 0


class AbandonedError(Exception):
    """No request waits for this work any longer."""


@dataclass(eq=False, slots=True)
class EncoderTask:
    """Work of one request for the encoder's thread."""

    # Called on the thread, with a function that raises `AbandonedError` once no request waits for
    # the work.
    work: Callable[[Callable[[], None]], Any]
    size: int  # characters that count against the share of the client
    future: asyncio.Future[Any]  # future of the event loop that gets the result
    # Set when no request waits.
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
    """Runs the tasks of many requests one after another. Belongs to one event loop."""

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
        """Run work when its turn comes, and return its result, unless the thread is stuck.

        If the call is cancelled, the work is dropped, or ends soon if it is running. The size is in
        characters that count against the share of the client.
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
        """Raise `NotReadyError` if the thread is stuck."""
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
