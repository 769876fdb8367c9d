"""Cuts the conversations of a request into slices, tokenizes one, and puts its rewards in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import is_not

from rm_core import (
    ChatEncoder,
    Encoded,
    Fingerprint,
    PrerenderedText,
    PrerenderedTokens,
    Reward,
    ScoreCache,
    ScoredBatch,
    ScoreError,
    SharedPrefix,
    Truncation,
    cache_keys,
    get_messages,
    merge_results,
)
from rm_core.packing import TokenIds
from serve.scheduler.pending import DispatchResult
from serve.scoring.limits import check_num_messages

# Conversations are tokenized in slices of so many, or so many characters: the model starts on the
# first one at once, and requests take turns in between, after some 20 ms.
_MAX_SLICE_CONVERSATIONS = 64
_MAX_SLICE_CHARACTERS = 50_000
# What a template writes around a message, about.
_CHARACTERS_PER_MESSAGE = 16


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How conversations are read.

    Attributes:
        truncation: what to do with those that are too long.
        max_messages: most messages of one.
        max_length: most tokens of one, where that is less than the model's limit.
    """

    truncation: Truncation = "error"
    max_messages: int = 1_000
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class EncodedSlice:
    """Some conversations of a request, tokenized.

    Attributes:
        encoded: `[num_conversations]`, without their texts.
        known: the reward of each that could be encoded; None where it is to be computed.
        unknown: token ids of those that are to be computed, what is shared next to each other.
        places: for each of those, where its reward is in the answer to `unknown`.
    """

    encoded: list[Encoded | ScoreError]
    cached_rewards: list[float | None]
    missing_sequences: list[TokenIds]
    reward_indices: list[int]

    @property
    def num_tokens(self) -> int:
        """Tokens of those that could be encoded."""
        return sum(item.num_tokens for item in self.encoded if isinstance(item, Encoded))

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of those whose reward was known."""
        lengths = (item.num_tokens for item in self.encoded if isinstance(item, Encoded))
        return sum(
            n for n, reward in zip(lengths, self.cached_rewards, strict=True) if reward is not None
        )


@dataclass(frozen=True, slots=True)
class ScoredSlice:
    """What came of a slice; token ids are gone by now.

    Attributes:
        results: `[num_conversations]`.
        computed: what computing it took, without rewards.
        num_cached_tokens: tokens of those whose reward was known.
    """

    results: list[Reward | ScoreError]
    dispatch_result: DispatchResult
    num_cached_tokens: int

    @classmethod
    def from_dispatch_result(
        cls, encoded_slice: EncodedSlice, result: DispatchResult
    ) -> ScoredSlice:
        """The slice with the answer to its `unknown`."""
        fresh = (result.batch.rewards[place] for place in encoded_slice.reward_indices)
        rewards = tuple(
            next(fresh) if reward is None else reward for reward in encoded_slice.cached_rewards
        )
        results = merge_results(encoded_slice.encoded, ScoredBatch(rewards, 0))
        num_computed = ScoredBatch((), result.batch.num_computed_tokens)
        return cls(results, replace(result, batch=num_computed), encoded_slice.num_cached_tokens)


def encode_conversations(
    conversations: Sequence[object],
    options: EncodeOptions,
    encoder: ChatEncoder,
    shared: SharedPrefix,
    check_cancelled: Callable[[], None],
) -> list[Encoded | ScoreError]:
    """Tokenize; an error stands in the place of what cannot be.

    Args:
        conversations: of a slice.
        reading: how they are read.
        encoder: of the model.
        shared: of the request.
        look_up: see `ChatEncoder.encode_all`.
    """
    refused = [check_num_messages(c, options.max_messages) for c in conversations]
    kept = [c for c, error in zip(conversations, refused, strict=True) if error is None]
    encoded = iter(
        encoder.encode_all(
            kept,
            options.truncation,
            options.max_length,
            shared=shared,
            check_cancelled=check_cancelled,
        )
    )
    return [next(encoded) if error is None else error for error in refused]


def look_up_rewards(
    encoded: Sequence[Encoded | ScoreError],
    cache: ScoreCache | None,
    fingerprint: Fingerprint,
    scope: str,
) -> EncodedSlice:
    """Look up what the model of that fingerprint computed before, within a scope."""
    bare = [replace(item, text="") if isinstance(item, Encoded) else item for item in encoded]
    sequences = [item.input_ids for item in bare if isinstance(item, Encoded)]
    known: list[float | None] = [None] * len(sequences)
    if cache is not None:
        known = [cache.get(key) for key in cache_keys(fingerprint, sequences, scope)]
    wanted = [s for s, reward in zip(sequences, known, strict=True) if reward is None]
    unknown = sorted(set(wanted))
    places = {sequence: place for place, sequence in enumerate(unknown)}
    return EncodedSlice(bare, known, unknown, [places[s] for s in wanted])


def split_into_slices(
    conversations: Sequence[object], sizes: Sequence[int]
) -> Iterator[tuple[Sequence[object], int]]:
    """The conversations in order, some at a time, and how many characters these have.

    Args:
        conversations: of a request.
        sizes: of each, from `estimate_sizes`.
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


def estimate_sizes(conversations: Sequence[object], max_total: int) -> list[int] | None:
    """About how many characters (or token ids) each has, what they share counted each time.

    Args:
        conversations: of a request.
        most: of all of them together.

    Returns:
        None if they have more than that.
    """
    sizes: list[int] = []
    total = 0
    of_tools: dict[int, int] = {}
    before: Sequence[object] = ()
    size_before = 0
    for conversation in conversations:
        if isinstance(conversation, PrerenderedText):
            size = len(conversation.text)
        elif isinstance(
            conversation, PrerenderedTokens
        ):  # an id is checked and decoded as fast as a character
            size = len(conversation.input_ids)
        else:
            messages = get_messages(conversation)
            messages = messages if isinstance(messages, list | tuple) else ()
            # Answers to one prompt: its messages are the same objects each time.
            if len(messages) != len(before) or any(map(is_not, messages[:-1], before[:-1])):
                size_before = _estimate_message_sizes(messages[:-1])
            before = messages
            size = size_before + _estimate_message_sizes(messages[-1:])
            if isinstance(conversation, Mapping) and (tools := conversation.get("tools")):
                # Rendered for each conversation, though one list may belong to all of a request.
                if id(tools) not in of_tools:
                    of_tools[id(tools)] = _count_characters(tools)
                size += of_tools[id(tools)]
        sizes.append(size)
        total += size
        if total > max_total:
            return None
    return sizes


def _estimate_message_sizes(messages: Sequence[object]) -> int:
    """About how long some messages are; what has another shape is refused quickly."""
    size = _CHARACTERS_PER_MESSAGE * len(messages)
    for message in messages:
        if isinstance(message, dict):
            content = message.get("content")
            # Else there are parts, or keys that the template may write as well.
            if isinstance(content, str) and len(message) <= 2:
                size += len(content)
            else:
                size += _count_characters(message)
    return size


def _count_characters(value: object) -> int:
    """Characters of all texts in a value, names of keys among them."""
    size, rest = 0, [value]
    while rest:
        node = rest.pop()
        if isinstance(node, str):
            size += len(node)
        elif isinstance(node, Mapping):
            rest += [*node.keys(), *node.values()]
        elif isinstance(node, list | tuple):
            rest += node
    return size
