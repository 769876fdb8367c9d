"""Cuts the conversations of a request into slices, tokenizes one, and puts its rewards in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rm_core import (
    ChatEncoder,
    Encoded,
    Fingerprint,
    Rendered,
    ScoreCache,
    ScoreError,
    Truncation,
    cache_keys,
    messages_in,
)
from rm_core.packing import TokenIds
from serve.guard.limits import too_many_messages

# Conversations are tokenized in slices of so many, or so many characters: the model starts on the
# first one at once, and requests take turns in between.
_SLICE = 64
_SLICE_CHARACTERS = 200_000


@dataclass(frozen=True, slots=True)
class Reading:
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
class Slice:
    """Some conversations of a request, tokenized.

    Attributes:
        encoded: `[num_conversations]`.
        known: the reward of each that could be encoded; None where it is to be computed.
        unknown: token ids of those that are to be computed, what is shared next to each other.
        places: for each of those, where its reward is in the answer to `unknown`.
    """

    encoded: list[Encoded | ScoreError]
    known: list[float | None]
    unknown: list[TokenIds]
    places: list[int]

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of those whose reward was known."""
        lengths = (item.num_tokens for item in self.encoded if isinstance(item, Encoded))
        return sum(n for n, reward in zip(lengths, self.known, strict=True) if reward is not None)

    def rewards(self, computed: Sequence[float | ScoreError]) -> list[float | ScoreError]:
        """The reward of each that could be encoded, given those of `unknown`."""
        fresh = (computed[place] for place in self.places)
        return [next(fresh) if reward is None else reward for reward in self.known]


def encode(
    conversations: Sequence[object], reading: Reading, encoder: ChatEncoder
) -> list[Encoded | ScoreError]:
    """Tokenize; an error stands in the place of what cannot be."""
    refused = [too_many_messages(c, reading.max_messages) for c in conversations]
    kept = [c for c, error in zip(conversations, refused, strict=True) if error is None]
    encoded = iter(encoder.encode_all(kept, reading.truncation, reading.max_length))
    return [next(encoded) if error is None else error for error in refused]


def encode_slice(
    conversations: Sequence[object],
    reading: Reading,
    encoder: ChatEncoder,
    cache: ScoreCache | None,
    fingerprint: Fingerprint,
) -> Slice:
    """Tokenize, and look up what the model of that fingerprint computed before."""
    encoded = encode(conversations, reading, encoder)
    sequences = [item.input_ids for item in encoded if isinstance(item, Encoded)]
    known: list[float | None] = [None] * len(sequences)
    if cache is not None:
        known = [cache.get(key) for key in cache_keys(fingerprint, sequences)]
    wanted = [s for s, reward in zip(sequences, known, strict=True) if reward is None]
    unknown = sorted(set(wanted))
    places = {sequence: place for place, sequence in enumerate(unknown)}
    return Slice(encoded, known, unknown, [places[s] for s in wanted])


def slices(conversations: Sequence[object]) -> Iterator[Sequence[object]]:
    """The conversations in order, some at a time."""
    start, characters = 0, 0
    sizes: dict[int, int] = {}
    for place, conversation in enumerate(conversations):
        characters += _characters(conversation)
        if isinstance(conversation, Mapping) and (tools := conversation.get("tools")):
            # Rendered for each conversation, though one list may belong to all of a request.
            if id(tools) not in sizes:
                sizes[id(tools)] = _size(tools)
            characters += sizes[id(tools)]
        if place + 1 - start == _SLICE or characters >= _SLICE_CHARACTERS:
            yield conversations[start : place + 1]
            start, characters = place + 1, 0
    if start < len(conversations):
        yield conversations[start:]


def _characters(conversation: object) -> int:
    """About how long it is; what has another shape is refused quickly."""
    if isinstance(conversation, Rendered):
        return len(conversation.text)
    messages = messages_in(conversation)
    if not isinstance(messages, Sequence):
        return 0
    contents = (m.get("content") for m in messages if isinstance(m, dict))
    return sum(len(content) for content in contents if isinstance(content, str))


def _size(value: object) -> int:
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
