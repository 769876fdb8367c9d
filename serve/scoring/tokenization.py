"""Tokenizes the conversations of one request in slices, in turn with other requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rm_core import ChatEncoder, Encoded, ScoreError, SharedPrefix
from serve.scheduler.fair_queue import Flow
from serve.scoring.encoder_thread import EncoderTask, EncoderThread
from serve.scoring.limits import (
    RequestOptions,
    check_num_messages,
    check_num_tokens,
    estimate_sizes,
)

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
            encoded = await self._thread.run(self._flow, size, partial(self._encode, conversations))
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
