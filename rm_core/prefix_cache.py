"""The prefix cache: keys and values of prompts, kept on the device between batches.

A radix tree over token ids, as in SGLang's RadixAttention (Zheng et al., 2023), says which
prefixes are there. Each of their tokens has a slot: one row of the keys and one of the values of
every layer. A prefix is found and kept to the token. When the slots run out, the least recently
used prefixes are evicted, from their ends. `PrefixCache.acquire` takes what is cached out of a
batch's row; while the row runs, `CachedBatch.extend` adds the cached keys and values to those of
each layer and keeps those of new prompts.
"""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from rm_core.device_copy import copy_to_device
from rm_core.packing import PrefixTree, TokenIds, common_prefix_length

# All prompts of a template begin with the same few tokens: to compute them is as fast as to read
# them.
_MIN_TOKENS = 16


@dataclass(frozen=True, slots=True)
class NewPrefix:
    """Tokens of a batch that the cache keeps once the batch has run.

    Attributes:
        salt: salt of the sequence; see `rm_core.packing.pack`.
        token_ids: token ids from the start of the sequence to the last token that is kept.
        slots: int64 `[num_new]`, slots of the last `num_new` of these tokens.
    """

    salt: str
    token_ids: TokenIds
    slots: torch.Tensor


@dataclass(frozen=True, slots=True)
class CachedBatch:
    """A batch without the tokens that are in the cache, and the slots that it reads and writes.

    Attributes:
        tree: the batch; its row lacks the cached tokens.
        layers: for each layer `[2, num_slots, num_key_value_heads, head_dim]`, keys and values.
        read_slots: int64 `[tree.num_cached_tokens]`, slot of each cached token.
        write_rows: int64 `[num_new]`, indices in the row of the tokens that the cache keeps.
        write_slots: int64 `[num_new]`, slots of these tokens.
        new_prefixes: the same tokens by prefix, each after the prefixes that it continues.
    """

    tree: PrefixTree
    layers: Sequence[torch.Tensor]
    read_slots: torch.Tensor
    write_rows: torch.Tensor
    write_slots: torch.Tensor
    new_prefixes: tuple[NewPrefix, ...]
    _indices: dict[torch.device, tuple[torch.Tensor, ...]] = field(default_factory=dict)

    def extend(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep a layer's keys and values of new prefixes, and add those that are cached.

        Args:
            layer: index of the layer.
            key: `[tree.num_tokens, num_key_value_heads, head_dim]`, in the order of the row.
            value: same shape and order as `key`.

        Returns:
            Keys and values `[tree.num_keys, num_key_value_heads, head_dim]`, the cached ones first.
        """
        kept = self.layers[layer]
        read_slots, write_rows, write_slots = self._get_indices(kept.device)
        extended: list[torch.Tensor] = []
        for slots, rows in zip(kept, (key, value), strict=True):
            if len(write_rows):
                slots.index_copy_(0, write_slots, rows.index_select(0, write_rows))
            extended.append(_prepend_slots(slots, read_slots, rows) if len(read_slots) else rows)
        return extended[0], extended[1]

    def _get_indices(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        if device not in self._indices:
            self._indices[device] = tuple(
                copy_to_device(indices, device)
                for indices in (self.read_slots, self.write_rows, self.write_slots)
            )
        return self._indices[device]


class _Node:
    """A run of tokens in the radix tree. `children` are by their first token."""

    __slots__ = ("children", "parent", "salt", "slots", "tick", "token_ids")

    def __init__(
        self,
        token_ids: TokenIds,
        slots: torch.Tensor,
        parent: _Node | None,
        tick: int,
        salt: str = "",
    ) -> None:
        self.token_ids = token_ids
        self.slots = slots
        self.parent = parent
        self.salt = salt  # of a root
        self.children: dict[int, _Node] = {}
        self.tick = tick


class PrefixCache:
    """Keeps keys and values of prefixes. One batch at a time may be acquired.

    `count` may be called from another thread.

    Args:
        num_slots: number of tokens that the cache can hold, at least 1.
        num_key_value_heads: number of heads of keys and values.
        head_dim: size of a head.
        dtype: dtype of keys and values.
        devices: device of each layer.
        min_tokens: length from which on a prefix is read from the cache.
    """

    def __init__(
        self,
        num_slots: int,
        num_key_value_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        devices: Sequence[torch.device],
        min_tokens: int = _MIN_TOKENS,
    ) -> None:
        shape = (2, num_slots, num_key_value_heads, head_dim)
        self._layers = [torch.empty(shape, dtype=dtype, device=device) for device in devices]
        self._num_slots = num_slots
        self._min_tokens = min_tokens
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget everything, for example because the weights have changed."""
        with self._lock:
            # A stack: the last `num_free` slots of it are free.
            self._free = torch.arange(self._num_slots)
            self._num_free = self._num_slots
            self._tick = 0
            self._no_slots = self._free[:0]
            # A tree for each salt: a prefix that another client sent is not found.
            self._roots: dict[str, _Node] = {}
            # Least recently used nodes first; a node always comes before its parent.
            self._order: OrderedDict[_Node, None] = OrderedDict()

    @property
    def num_tokens(self) -> int:
        """Number of tokens in the cache."""
        return self._num_slots - self._num_free

    @property
    def num_bytes(self) -> int:
        """Memory of the tokens in the cache, in bytes."""
        return self.num_tokens * sum(
            layer[:, :1].numel() * layer.element_size() for layer in self._layers
        )

    def count(self, token_ids: TokenIds, salt: str = "") -> int:
        """Count the first tokens of a sequence that are in the cache, its last token left out."""
        with self._lock:
            num_matched = sum(count for _, count in self._find(salt, token_ids[:-1]))
            return num_matched if num_matched >= self._min_tokens else 0

    def acquire(self, tree: PrefixTree, num_kept: Sequence[int]) -> CachedBatch:
        """Take what is cached out of a batch, and reserve slots for what is to be kept.

        `commit` or `release` has to follow.

        Args:
            tree: the batch.
            num_kept: for each sequence, the number of its first tokens to keep. Fewer are kept if
                the slots do not suffice.
        """
        with self._lock:
            self._tick += 1
            num_cached, read_slots = self._find_cached(tree)
            row = tree.exclude_cached(num_cached)
            num_new = self._reserve(tree, num_cached, _count_kept(tree, num_kept))
            row_starts = iter([s.start - row.num_cached_tokens for s in row.row_segments])
            write_rows: list[torch.Tensor] = []
            new_prefixes: list[NewPrefix] = []
            for segment, cached, new in zip(tree.segments, num_cached, num_new, strict=True):
                if cached == len(segment.token_ids):
                    continue
                row_start = next(row_starts)
                if new:
                    stop = segment.depth + cached + new
                    salt = tree.salts[segment.sequence]
                    token_ids = tree.sequences[segment.sequence][:stop]
                    write_rows.append(torch.arange(row_start, row_start + new))
                    new_prefixes.append(NewPrefix(salt, token_ids, self._take_slots(new)))
            return CachedBatch(
                row,
                self._layers,
                torch.cat([self._no_slots, *read_slots]),
                torch.cat([self._no_slots, *write_rows]),
                torch.cat([self._no_slots, *(prefix.slots for prefix in new_prefixes)]),
                tuple(new_prefixes),
            )

    def commit(self, batch: CachedBatch) -> None:
        """Add the new prefixes of a batch that has run."""
        with self._lock:
            for prefix in batch.new_prefixes:
                self._insert(prefix)

    def release(self, batch: CachedBatch) -> None:
        """Give the slots of a batch that failed back."""
        with self._lock:
            self._give_slots(batch.write_slots)

    def _find(self, salt: str, token_ids: TokenIds) -> list[tuple[_Node, int]]:
        """Return the nodes along a sequence, each with the number of its tokens that match."""
        path: list[tuple[_Node, int]] = []
        node, position = self._roots.get(salt), 0
        while node is not None and position < len(token_ids):
            child = node.children.get(token_ids[position])
            if child is None:
                break
            stop = position + len(child.token_ids)
            num_matched = common_prefix_length(child.token_ids, token_ids[position:stop])
            path.append((child, num_matched))
            if num_matched < len(child.token_ids):
                break
            node, position = child, stop
        return path

    def _touch(self, path: Sequence[_Node]) -> None:
        """Mark nodes, each the child of the one before, as used by the current batch."""
        for node in reversed(path):
            node.tick = self._tick
            self._order[node] = None
            self._order.move_to_end(node)

    def _find_cached(self, tree: PrefixTree) -> tuple[list[int], list[torch.Tensor]]:
        """Return the number of cached tokens of each segment, and the slots of all of them."""
        # A token at which a sequence is read is computed, because its hidden state is needed.
        limits = [len(segment.token_ids) for segment in tree.segments]
        starts = [segment.start for segment in tree.segments]
        for row in tree.all_read_rows:
            index = bisect.bisect(starts, row) - 1
            limits[index] = min(limits[index], row - starts[index])
        num_cached: list[int] = []
        paths: list[list[tuple[_Node, int]]] = []
        for segment, limit in zip(tree.segments, limits, strict=True):
            num_cached.append(0)
            paths.append([])
            if segment.parent >= 0:
                parent = tree.segments[segment.parent]
                if parent.depth + num_cached[segment.parent] < segment.depth:
                    continue
            salt, sequence = tree.salts[segment.sequence], tree.sequences[segment.sequence]
            paths[-1] = self._find(salt, sequence[: segment.depth + limit])
            self._touch([node for node, _ in paths[-1]])
            num_matched = sum(count for _, count in paths[-1])
            num_cached[-1] = max(0, num_matched - segment.depth)
        self._drop_short(tree, num_cached)
        read_slots = [
            torch.cat([node.slots[:matched] for node, matched in path])[segment.depth :][:count]
            for segment, path, count in zip(tree.segments, paths, num_cached, strict=True)
            if count
        ]
        return num_cached, read_slots

    def _drop_short(self, tree: PrefixTree, num_cached: list[int]) -> None:
        """Set to 0 the number of cached tokens of segments whose cached prefix is too short.

        Except if a later segment continues these tokens with cached ones, and is long enough.
        """
        needed = [0] * len(tree.segments)
        for index in reversed(range(len(tree.segments))):
            segment, count = tree.segments[index], num_cached[index]
            if segment.depth + count < self._min_tokens:
                num_cached[index] = count = needed[index]
            if count and segment.parent >= 0:
                parent = tree.segments[segment.parent]
                needed[segment.parent] = max(needed[segment.parent], segment.depth - parent.depth)

    def _reserve(
        self, tree: PrefixTree, num_cached: Sequence[int], num_kept: Sequence[int]
    ) -> list[int]:
        """Return how many further tokens of each segment are kept; so many slots are then free."""
        wanted = [max(0, kept - cached) for cached, kept in zip(num_cached, num_kept, strict=True)]
        self._evict(sum(wanted))
        num_left = self._num_free
        num_new: list[int] = []
        for segment, want in zip(tree.segments, wanted, strict=True):
            if segment.parent >= 0:
                parent = tree.segments[segment.parent]
                kept = parent.depth + num_cached[segment.parent] + num_new[segment.parent]
                if kept < segment.depth:  # the path before this segment is not kept
                    want = 0
            num_new.append(min(want, num_left))
            num_left -= num_new[-1]
        return num_new

    def _evict(self, num_slots: int) -> None:
        """Evict tokens until so many slots are free, but none that the current batch uses."""
        while self._num_free < num_slots and self._order:
            node = next(iter(self._order))
            if node.tick == self._tick:
                return
            assert not node.children
            num_evicted = min(num_slots - self._num_free, len(node.token_ids))
            self._give_slots(node.slots[-num_evicted:])
            first = node.token_ids[0]
            node.token_ids = node.token_ids[:-num_evicted]
            node.slots = node.slots[:-num_evicted]
            if not node.token_ids:
                assert node.parent is not None
                del node.parent.children[first]
                del self._order[node]
                self._drop_if_empty(node.parent)

    def _take_slots(self, num_slots: int) -> torch.Tensor:
        start = self._num_free - num_slots
        assert start >= 0
        slots = self._free[start : self._num_free].clone()
        self._num_free = start
        return slots

    def _give_slots(self, slots: torch.Tensor) -> None:
        self._free[self._num_free : self._num_free + len(slots)] = slots
        self._num_free += len(slots)

    def _insert(self, prefix: NewPrefix) -> None:
        path = self._find(prefix.salt, prefix.token_ids)
        nodes = [node for node, _ in path]
        num_matched = sum(count for _, count in path)
        # Some tokens may have been computed although they are cached: the last ones of sequences.
        num_known = num_matched - (len(prefix.token_ids) - len(prefix.slots))
        assert num_known >= 0, "a prefix continues one that is cached"
        self._give_slots(prefix.slots[:num_known])
        if num_known < len(prefix.slots):
            if path and path[-1][1] < len(path[-1][0].token_ids):
                nodes[-1] = self._split(*path[-1])
            parent = nodes[-1] if nodes else self._get_root(prefix.salt)
            token_ids = prefix.token_ids[num_matched:]
            node = _Node(token_ids, prefix.slots[num_known:], parent, self._tick)
            parent.children[token_ids[0]] = node
            nodes.append(node)
        self._touch(nodes)

    def _get_root(self, salt: str) -> _Node:
        if salt not in self._roots:
            self._roots[salt] = _Node((), self._no_slots, None, self._tick, salt)
        return self._roots[salt]

    def _drop_if_empty(self, node: _Node) -> None:
        if node.parent is None and not node.children:  # over time there may be any number of salts
            del self._roots[node.salt]

    def _split(self, node: _Node, num_tokens: int) -> _Node:
        """Split a node after so many tokens; return the new node, which has these."""
        parent = node.parent
        assert parent is not None
        upper = _Node(node.token_ids[:num_tokens], node.slots[:num_tokens], parent, node.tick)
        parent.children[upper.token_ids[0]] = upper
        node.token_ids, node.slots = node.token_ids[num_tokens:], node.slots[num_tokens:]
        node.parent = upper
        upper.children[node.token_ids[0]] = node
        return upper


def _prepend_slots(slots: torch.Tensor, indices: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return `slots[indices]` followed by `rows`, each copied once."""
    num_cached = len(indices)
    joined = rows.new_empty((num_cached + len(rows), *rows.shape[1:]))
    torch.index_select(slots, 0, indices, out=joined[:num_cached])
    joined[num_cached:] = rows
    return joined


def _count_kept(tree: PrefixTree, num_kept: Sequence[int]) -> list[int]:
    """Return for each segment the number of its first tokens that some sequence wants to keep."""
    counts = [0] * len(tree.segments)
    starts = [segment.start for segment in tree.segments]
    for end, stop in zip(tree.ends, num_kept, strict=True):
        index = bisect.bisect(starts, end) - 1
        while index >= 0:
            segment = tree.segments[index]
            count = min(stop - segment.depth, len(segment.token_ids))
            counts[index] = max(counts[index], count)
            stop, index = min(stop, segment.depth), segment.parent
    return counts
