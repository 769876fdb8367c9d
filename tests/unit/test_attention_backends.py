"""Every backend against plain attention of each conversation in float64.

Functions that follow the documentation of the CUDA kernels replace them, so that these tests check
the arguments of the kernels; the kernels themselves are tested on machines with a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import hypothesis
import pytest
import torch
from examples import limit_examples
from gpu.fake_kernels import flash_4_kernel, flash_kernel, flex_kernel, torch_kernel
from hypothesis import given
from hypothesis import strategies as st

from rm_core.attention import (
    AttentionBackend,
    AttentionParams,
    Segment,
    build_segments,
    build_token_segments,
    eager,
)
from rm_core.attention.cpu_kernel import CpuKernelBackend
from rm_core.attention.cpu_sdpa import CpuSdpaBackend
from rm_core.attention.eager import EagerBackend
from rm_core.attention.flash import FlashAttn4Backend, FlashAttnBackend
from rm_core.attention.flex import BLOCK, FlexBackend, _build_block_mask
from rm_core.attention.torch_varlen import TorchVarlenBackend
from rm_core.cpu_kernels import compile_kernels
from rm_core.packing import PrefixTree, TokenIds, pack

HEADS, KV_HEADS, DIM = 4, 2, 8
SEQUENCES = st.lists(
    st.lists(st.integers(0, 1), min_size=1, max_size=24).map(tuple), min_size=1, max_size=12
)
PLAIN = AttentionParams(scaling=0.4)
CAPPED = AttentionParams(scaling=0.4, softcap=2.0)
WINDOWED = AttentionParams(scaling=0.4, window=5)
BOTH = AttentionParams(scaling=0.4, softcap=2.0, window=5)


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, params: AttentionParams
) -> torch.Tensor:
    """Compute attention of the last `len(query)` tokens of a conversation to all its tokens."""
    key, value = (t.repeat_interleave(HEADS // KV_HEADS, 1).double() for t in (key, value))
    weights = torch.einsum("qhd,khd->hqk", query.double(), key) * params.scaling
    if params.softcap:
        weights = params.softcap * torch.tanh(weights / params.softcap)
    keys = torch.arange(len(key))
    positions = keys[-len(query) :].unsqueeze(1)
    hidden = keys > positions
    if params.window:
        hidden |= keys <= positions - params.window
    weights = weights.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value).to(query.dtype)


BACKENDS: dict[str, tuple[Callable[[], AttentionBackend], list[AttentionParams]]] = {
    "eager": (EagerBackend, [PLAIN, CAPPED, WINDOWED, BOTH]),
    "eager, aligned": (lambda: EagerBackend(aligned=True), [PLAIN, CAPPED, WINDOWED, BOTH]),
    "compiled": (lambda: CpuKernelBackend(compile_kernels()), [PLAIN]),
    "split": (CpuSdpaBackend, [PLAIN]),
    "torch's varlen": (lambda: TorchVarlenBackend(kernel=torch_kernel), [PLAIN, WINDOWED]),
    "flash-attn": (lambda: FlashAttnBackend(flash_kernel), [PLAIN, CAPPED, WINDOWED, BOTH]),
    "flash-attn-4": (
        lambda: FlashAttn4Backend(flash_4_kernel),
        [PLAIN, CAPPED, WINDOWED, BOTH],
    ),
    "flex": (lambda: FlexBackend(flex_kernel), [PLAIN, CAPPED, WINDOWED, BOTH]),
}
CASES = [(name, params) for name, (_, all_params) in BACKENDS.items() for params in all_params]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "BLOCK", 4)


def expected(
    tree: PrefixTree,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    params: AttentionParams,
) -> torch.Tensor:
    out = torch.empty_like(query)
    for index, tree_segment in enumerate(tree.segments):
        path = [p for a, b in tree.get_path(index, tree_segment.stop) for p in range(a, b)]
        out[path] = attention(query[path], key[path], value[path], params)
    return out


def random_tensors(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    shapes = [(num_tokens, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    query, key, value = (torch.randn(*shape, generator=generator) for shape in shapes)
    return query, key, value


def build_tree(sequences: list[TokenIds]) -> PrefixTree:
    (tree,) = pack(sequences, 10_000).batches
    return tree


@pytest.mark.parametrize(("name", "params"), CASES)
@hypothesis.settings(max_examples=limit_examples(25))
@given(sequences=SEQUENCES)
def test_backend_equals_reference_for_all_tokens(
    name: str, params: AttentionParams, sequences: list[TokenIds]
) -> None:
    tree = build_tree(sequences)
    query, key, value = random_tensors(tree.num_tokens)
    backend = BACKENDS[name][0]()
    plan = backend.plan(build_segments(tree), tree.num_tokens, query.device)
    output = backend.attend(plan, query, key, value, params)
    assert output.shape == query.shape
    torch.testing.assert_close(
        output, expected(tree, query, key, value, params), atol=2e-6, rtol=1e-5
    )


@pytest.mark.parametrize(("name", "params"), CASES)
@hypothesis.settings(max_examples=limit_examples(25))
@given(sequences=SEQUENCES)
def test_backend_equals_reference_for_readout_tokens(
    name: str, params: AttentionParams, sequences: list[TokenIds]
) -> None:
    """As in the last layer: queries at the ends of the conversations only."""
    tree = build_tree(sequences)
    query, key, value = random_tensors(tree.num_tokens)
    indices = sorted(tree.ends)
    backend = BACKENDS[name][0]()
    plan = backend.plan(build_token_segments(tree, indices), tree.num_tokens, query.device)
    output = backend.attend(plan, query[indices], key, value, params)
    torch.testing.assert_close(
        output, expected(tree, query, key, value, params)[indices], atol=2e-6, rtol=1e-5
    )


def test_flex_mask_covers_several_blocks() -> None:
    """Rows of several blocks; each block of keys is either computed or skipped."""
    start = tuple(range(300))
    tree = build_tree([(*start, 1, *range(200)), (*start, 2, *range(90)), start[:140], (9,) * 150])
    query, key, value = random_tensors(tree.num_tokens)
    backend = FlexBackend(flex_kernel)
    plan = backend.plan(build_segments(tree), tree.num_tokens, query.device)
    for params in (PLAIN, CAPPED, AttentionParams(scaling=0.4, window=70)):
        output = backend.attend(plan, query, key, value, params)
        torch.testing.assert_close(
            output, expected(tree, query, key, value, params), atol=5e-6, rtol=1e-5
        )


@pytest.mark.parametrize("window", [None, 40, 300])
def test_flex_blocks_are_left_out_or_unmasked_only_where_that_is_right(
    window: int | None,
) -> None:
    """Against the mask of every query and key; long ancestors, and readouts as queries."""
    start = tuple(range(700))
    tree = build_tree([(*start, 1, *range(500)), (*start, 2, *range(90)), start[:140], (9,) * 150])
    for segments in (
        build_segments(tree),
        build_token_segments(tree, sorted(tree.ends)),
        build_token_segments(tree, range(400, tree.num_tokens)),
    ):
        plan = FlexBackend(flex_kernel).plan(segments, tree.num_tokens, torch.device("cpu"))
        visible = torch.zeros(len(plan.query_positions), len(plan.key_positions), dtype=torch.bool)
        for segment in segments:
            path = torch.tensor([key for keys in segment.keys for key in range(*keys)])
            for query in range(segment.start, segment.stop):
                position = segment.position + query - segment.start
                low = 0 if window is None else max(0, position - window + 1)
                visible[query, path[low : position + 1]] = True
        mask = _build_block_mask(plan, window)
        queries, keys = torch.meshgrid(*map(torch.arange, visible.shape), indexing="ij")
        assert torch.equal(mask.mask_mod(0, 0, queries, keys), visible)
        blocks = (
            torch.nn.functional.pad(
                visible, (0, -visible.shape[1] % BLOCK, 0, -visible.shape[0] % BLOCK)
            )
            .unflatten(1, (-1, BLOCK))
            .unflatten(0, (-1, BLOCK))
        )
        full = read_blocks(mask.full_kv_num_blocks, mask.full_kv_indices)
        partial = read_blocks(mask.kv_num_blocks, mask.kv_indices)
        assert not (full & partial).any()
        assert torch.equal(full, blocks.all(3).all(1))
        assert not (blocks.any(3).any(1) & ~full & ~partial).any()
        assert full.any() == (window != 40 and plan.num_queries > BLOCK)


def read_blocks(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return which blocks of a BlockMask are listed, `[query blocks, key blocks]`."""
    listed = torch.zeros(indices.shape[2:], dtype=torch.bool)
    for query, count in enumerate(counts[0, 0].tolist()):
        listed[query, indices[0, 0, query, :count]] = True
    return listed


def test_flex_copies_no_tensor_that_needs_no_padding() -> None:
    tensors: list[int] = []

    def kernel(query: torch.Tensor, *others: torch.Tensor, **_: object) -> torch.Tensor:
        tensors.extend(tensor.data_ptr() for tensor in (query, *others))
        return query

    tree = build_tree([tuple(range(300))])
    inputs = random_tensors(300)
    backend = FlexBackend(kernel)
    plan = backend.plan(build_segments(tree), 300, torch.device("cpu"))
    backend.attend(plan, *inputs, PLAIN)
    assert tensors == [tensor.data_ptr() for tensor in inputs]


@given(SEQUENCES)
def test_segments_cover_complete_conversations(sequences: list[TokenIds]) -> None:
    tree = build_tree(sequences)
    row = [token for tree_segment in tree.segments for token in tree_segment.token_ids]
    indices = sorted(tree.ends)
    read = [
        tuple(row[index] for start, stop in segment.keys for index in range(start, stop))
        for segment in build_token_segments(tree, indices)
    ]
    expected_sequences = dict(zip(tree.ends, tree.sequences, strict=True))
    assert dict(zip(indices, read, strict=True)) == expected_sequences
    for tree_segment, segment in zip(tree.segments, build_segments(tree), strict=True):
        assert (segment.start, segment.stop) == (tree_segment.start, tree_segment.stop)
        assert segment.position == tree_segment.depth


def test_siblings_attend_to_ancestor_in_one_call() -> None:
    tree = build_tree([(1, 2, 3, i) for i in range(16)])
    plan = CpuSdpaBackend().plan(build_segments(tree), tree.num_tokens, torch.device("cpu"))
    assert len(plan.own) == 16
    assert [(b.queries, b.keys) for b in plan.ancestors] == [(slice(4, 19), slice(0, 3))]


def test_single_conversation_is_not_gathered() -> None:
    backend = TorchVarlenBackend(kernel=torch_kernel)
    (one,) = backend.plan([Segment(0, 5, ((0, 5),))], 5, torch.device("cpu"))
    assert one.gather_indices is None
    (two,) = backend.plan(build_segments(build_tree([(1, 2), (1, 3)])), 3, torch.device("cpu"))
    assert two.gather_indices is not None
    assert two.gather_indices.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("name", ["torch's varlen", "flash-attn", "flash-attn-4"])
def test_gathered_keys_are_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 answers to a long prompt need its keys 60 times; the kernel gets them in parts."""
    tree = build_tree([(*range(50), *[60 + index] * (1 + index % 3)) for index in range(60)])
    num_gathered: list[int] = []

    def spy(tensor: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
        assert indices is not None
        num_gathered.append(len(indices))
        return tensor[indices]

    monkeypatch.setattr("rm_core.attention.varlen._gather", spy)
    query, key, value = random_tensors(tree.num_tokens)
    backend = BACKENDS[name][0]()
    indices = sorted(tree.ends)
    for segments, queries in (
        (build_segments(tree), query),
        (build_token_segments(tree, indices), query[indices]),
    ):
        num_gathered.clear()
        plan = backend.plan(segments, tree.num_tokens, query.device)
        output = backend.attend(plan, queries, key, value, PLAIN)
        rows = expected(tree, query, key, value, PLAIN)
        rows = rows if len(queries) == len(query) else rows[indices]
        torch.testing.assert_close(output, rows, atol=2e-6, rtol=1e-5)
        assert len(num_gathered) > 2
        assert max(num_gathered) <= 8 * tree.num_tokens
        assert sum(num_gathered) == 2 * sum(segment.num_keys for segment in segments)


@pytest.mark.parametrize(("activated", "splits"), [(None, None), ("FA3", 1)])
def test_deterministic_varlen_disables_splits(
    activated: str | None, splits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "torch.nn.attention.current_flash_attention_impl", lambda: activated, raising=False
    )

    def older(query: torch.Tensor, *_: object, scale: float, window_size: object) -> torch.Tensor:
        return query

    options: list[object] = []

    def newer(
        query: torch.Tensor,
        *_: object,
        scale: float,
        window_size: object,
        enable_gqa: bool = False,
        num_splits: int | None = None,
    ) -> torch.Tensor:
        options.append((enable_gqa, num_splits))
        return query

    query, key, value = random_tensors(3)
    for kernel in (older, newer):
        for deterministic in (False, True):
            backend = TorchVarlenBackend(deterministic, kernel)
            plan = backend.plan([Segment(0, 3, ((0, 3),))], 3, query.device)
            assert torch.equal(backend.attend(plan, query, key, value, PLAIN), query)
    assert options == [(True, None), (True, splits)]
