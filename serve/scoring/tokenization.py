"""Splits the conversations of a request into slices, tokenizes them, and orders their rewards."""

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

# Conversations are tokenized in slices of so many, or of so many characters: the model starts on
# the first slice at once, and requests take turns between slices, after some 20 ms.
_MAX_SLICE_CONVERSATIONS = 64
_MAX_SLICE_CHARACTERS = 50_000
# Approximate number of characters that a template writes around a message.
_CHARACTERS_PER_MESSAGE = 16


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How conversations are encoded.

    Attributes:
        truncation: what to do with conversations that are too long.
        max_messages: maximum number of messages in a conversation.
        max_length: maximum number of tokens in a conversation, if less than the model's limit.
    """

    truncation: Truncation = "error"
    max_messages: int = 1_000
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class EncodedSlice:
    """Tokenized conversations of a request.

    Attributes:
        encoded: encoded conversations without their texts, or errors, `[num_conversations]`.
        cached_rewards: reward of each conversation that could be encoded; None if it is to be
            computed.
        missing_sequences: distinct token ids of the conversations without a cached reward, sorted,
            so that sequences with a shared prefix are next to each other.
        reward_indices: for each conversation without a cached reward, the index of its reward in
            the rewards of `missing_sequences`.
    """

    encoded: list[Encoded | ScoreError]
    cached_rewards: list[float | None]
    missing_sequences: list[TokenIds]
    reward_indices: list[int]

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the conversations that could be encoded."""
        return sum(item.num_tokens for item in self.encoded if isinstance(item, Encoded))

    @property
    def num_cached_tokens(self) -> int:
        """Number of tokens of the conversations with a cached reward."""
        lengths = (item.num_tokens for item in self.encoded if isinstance(item, Encoded))
        return sum(
            n for n, reward in zip(lengths, self.cached_rewards, strict=True) if reward is not None
        )


@dataclass(frozen=True, slots=True)
class ScoredSlice:
    """Results of a slice, without token ids.

    Attributes:
        results: rewards or errors, `[num_conversations]`.
        dispatch_result: cost of computing the slice, without its rewards.
        num_cached_tokens: number of tokens of the conversations with a cached reward.
    """

    results: list[Reward | ScoreError]
    dispatch_result: DispatchResult
    num_cached_tokens: int

    @classmethod
    def from_dispatch_result(
        cls, encoded_slice: EncodedSlice, result: DispatchResult
    ) -> ScoredSlice:
        """Merge the rewards of a slice's `missing_sequences` with its cached ones."""
        computed = (result.batch.rewards[index] for index in encoded_slice.reward_indices)
        rewards = tuple(
            next(computed) if reward is None else reward for reward in encoded_slice.cached_rewards
        )
        results = merge_results(encoded_slice.encoded, ScoredBatch(rewards, 0))
        cost = ScoredBatch((), result.batch.num_computed_tokens)
        return cls(results, replace(result, batch=cost), encoded_slice.num_cached_tokens)


def encode_conversations(
    conversations: Sequence[object],
    options: EncodeOptions,
    encoder: ChatEncoder,
    shared: SharedPrefix,
    check_cancelled: Callable[[], None],
) -> list[Encoded | ScoreError]:
    """Tokenize conversations; one that cannot be tokenized gets an error in its position.

    Args:
        conversations: conversations of a slice.
        options: how conversations are encoded.
        encoder: encoder of the model.
        shared: shared prefix of the request, kept between slices.
        check_cancelled: see `ChatEncoder.encode_all`.
    """
    errors = [check_num_messages(c, options.max_messages) for c in conversations]
    accepted = [c for c, error in zip(conversations, errors, strict=True) if error is None]
    encoded = iter(
        encoder.encode_all(
            accepted,
            options.truncation,
            options.max_length,
            shared=shared,
            check_cancelled=check_cancelled,
        )
    )
    return [next(encoded) if error is None else error for error in errors]


def look_up_rewards(
    encoded: Sequence[Encoded | ScoreError],
    cache: ScoreCache | None,
    fingerprint: Fingerprint,
    scope: str,
) -> EncodedSlice:
    """Look up rewards that a model with this fingerprint computed before, within a cache scope."""
    textless = [replace(item, text="") if isinstance(item, Encoded) else item for item in encoded]
    sequences = [item.input_ids for item in textless if isinstance(item, Encoded)]
    cached: list[float | None] = [None] * len(sequences)
    if cache is not None:
        cached = [cache.get(key) for key in cache_keys(fingerprint, sequences, scope)]
    missing = [s for s, reward in zip(sequences, cached, strict=True) if reward is None]
    distinct = sorted(set(missing))
    indices = {sequence: index for index, sequence in enumerate(distinct)}
    return EncodedSlice(textless, cached, distinct, [indices[s] for s in missing])


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


def estimate_sizes(conversations: Sequence[object], max_total: int) -> list[int] | None:
    """Estimate the characters (or token ids) of each conversation, shared ones counted each time.

    Args:
        conversations: conversations of a request.
        max_total: maximum size of all conversations together.

    Returns:
        The size of each conversation, or None if they have more than `max_total`.
    """
    sizes: list[int] = []
    total = 0
    tools_sizes: dict[int, int] = {}
    previous: Sequence[object] = ()
    prompt_size = 0
    for conversation in conversations:
        if isinstance(conversation, PrerenderedText):
            size = len(conversation.text)
        elif isinstance(conversation, PrerenderedTokens):
            # A token id is checked and decoded as fast as a character.
            size = len(conversation.input_ids)
        else:
            messages = get_messages(conversation)
            messages = messages if isinstance(messages, list | tuple) else ()
            # Answers to one prompt: the prompt's messages are the same objects each time.
            if len(messages) != len(previous) or any(map(is_not, messages[:-1], previous[:-1])):
                prompt_size = _estimate_message_sizes(messages[:-1])
            previous = messages
            size = prompt_size + _estimate_message_sizes(messages[-1:])
            if isinstance(conversation, Mapping) and (tools := conversation.get("tools")):
                # Tools are rendered for each conversation, but all of a request may have one list.
                if id(tools) not in tools_sizes:
                    tools_sizes[id(tools)] = _count_characters(tools)
                size += tools_sizes[id(tools)]
        sizes.append(size)
        total += size
        if total > max_total:
            return None
    return sizes


def _estimate_message_sizes(messages: Sequence[object]) -> int:
    """Estimate the characters of messages; those of another shape are refused quickly."""
    size = _CHARACTERS_PER_MESSAGE * len(messages)
    for message in messages:
        if isinstance(message, dict):
            content = message.get("content")
            # Otherwise there are content parts, or keys that the template may render too.
            if isinstance(content, str) and len(message) <= 2:
                size += len(content)
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
