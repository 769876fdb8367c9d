"""Every backend against attention written out conversation by conversation in float64.

The CUDA kernels are stood in for by functions that do what their documentation says, so that what
is handed to them is tested here; the kernels themselves are tested where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import hypothesis
import pytest
import torch
from gpu.fake_kernels import flash_kernel, flex_kernel, torch_kernel
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
from rm_core.attention.cpu_sdpa import CpuSdpaBackend
from rm_core.attention.eager import EagerBackend
from rm_core.attention.flash import FlashAttnBackend
from rm_core.attention.flex import FlexBackend
from rm_core.attention.torch_varlen import TorchVarlenBackend
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
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: AttentionParams
) -> torch.Tensor:
    """The last `len(query)` tokens of a conversation looking at all of it."""
    key, value = (t.repeat_interleave(HEADS // KV_HEADS, 1).double() for t in (key, value))
    weights = torch.einsum("qhd,khd->hqk", query.double(), key) * scores.scaling
    if scores.softcap:
        weights = scores.softcap * torch.tanh(weights / scores.softcap)
    keys = torch.arange(len(key))
    positions = keys[-len(query) :].unsqueeze(1)
    hidden = keys > positions
    if scores.window:
        hidden |= keys <= positions - scores.window
    weights = weights.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value).to(query.dtype)


BACKENDS: dict[str, tuple[Callable[[], AttentionBackend], list[AttentionParams]]] = {
    "eager": (EagerBackend, [PLAIN, CAPPED, WINDOWED, BOTH]),
    "eager, aligned": (lambda: EagerBackend(aligned=True), [PLAIN, CAPPED, WINDOWED, BOTH]),
    "split": (CpuSdpaBackend, [PLAIN]),
    "torch's varlen": (lambda: TorchVarlenBackend(kernel=torch_kernel), [PLAIN, WINDOWED]),
    "flash-attn": (lambda: FlashAttnBackend(flash_kernel), [PLAIN, CAPPED, WINDOWED, BOTH]),
    "flex": (lambda: FlexBackend(flex_kernel), [PLAIN, CAPPED, WINDOWED, BOTH]),
}
CASES = [(name, scores) for name, (_, all_scores) in BACKENDS.items() for scores in all_scores]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "BLOCK", 4)


def expected(
    tree: PrefixTree,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scores: AttentionParams,
) -> torch.Tensor:
    out = torch.empty_like(query)
    for index, run in enumerate(tree.segments):
        path = [p for a, b in tree.get_path(index, run.stop) for p in range(a, b)]
        out[path] = attention(query[path], key[path], value[path], scores)
    return out


def tensors(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    shapes = [(num_tokens, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    query, key, value = (torch.randn(*shape, generator=generator) for shape in shapes)
    return query, key, value


def tree_of(sequences: list[TokenIds]) -> PrefixTree:
    (tree,) = pack(sequences, 10_000).batches
    return tree


@pytest.mark.parametrize(("name", "scores"), CASES)
@hypothesis.settings(max_examples=25)
@given(sequences=SEQUENCES)
def test_every_token(name: str, scores: AttentionParams, sequences: list[TokenIds]) -> None:
    tree = tree_of(sequences)
    query, key, value = tensors(tree.num_tokens)
    backend = BACKENDS[name][0]()
    plan = backend.plan(build_segments(tree), tree.num_tokens, query.device)
    ours = backend.attend(plan, query, key, value, scores)
    assert ours.shape == query.shape
    torch.testing.assert_close(
        ours, expected(tree, query, key, value, scores), atol=2e-6, rtol=1e-5
    )


@pytest.mark.parametrize(("name", "scores"), CASES)
@hypothesis.settings(max_examples=25)
@given(sequences=SEQUENCES)
def test_some_tokens(name: str, scores: AttentionParams, sequences: list[TokenIds]) -> None:
    """As the last layer asks: for the ends of the conversations alone."""
    tree = tree_of(sequences)
    query, key, value = tensors(tree.num_tokens)
    places = sorted(tree.ends)
    backend = BACKENDS[name][0]()
    plan = backend.plan(build_token_segments(tree, places), tree.num_tokens, query.device)
    ours = backend.attend(plan, query[places], key, value, scores)
    torch.testing.assert_close(
        ours, expected(tree, query, key, value, scores)[places], atol=2e-6, rtol=1e-5
    )


def test_the_mask_of_flex_goes_on_behind_a_block() -> None:
    """Rows of several blocks, whose blocks of keys are looked at or left out as a whole."""
    start = tuple(range(300))
    tree = tree_of([(*start, 1, *range(200)), (*start, 2, *range(90)), start[:140], (9,) * 150])
    query, key, value = tensors(tree.num_tokens)
    backend = FlexBackend(flex_kernel)
    plan = backend.plan(build_segments(tree), tree.num_tokens, query.device)
    for scores in (PLAIN, CAPPED, AttentionParams(scaling=0.4, window=70)):
        ours = backend.attend(plan, query, key, value, scores)
        torch.testing.assert_close(
            ours, expected(tree, query, key, value, scores), atol=5e-6, rtol=1e-5
        )


@given(SEQUENCES)
def test_segments_are_whole_conversations(sequences: list[TokenIds]) -> None:
    tree = tree_of(sequences)
    row = [token for run in tree.segments for token in run.token_ids]
    places = sorted(tree.ends)
    read = [
        tuple(row[place] for start, stop in segment.keys for place in range(start, stop))
        for segment in build_token_segments(tree, places)
    ]
    assert dict(zip(places, read, strict=True)) == dict(zip(tree.ends, tree.sequences, strict=True))
    for run, segment in zip(tree.segments, build_segments(tree), strict=True):
        assert (segment.start, segment.stop) == (run.start, run.stop)
        assert segment.position == run.depth


def test_siblings_see_their_ancestor_in_one_call() -> None:
    tree = tree_of([(1, 2, 3, i) for i in range(16)])
    plan = CpuSdpaBackend().plan(build_segments(tree), tree.num_tokens, torch.device("cpu"))
    assert len(plan.own) == 16
    assert [(part.queries, part.keys) for part in plan.ancestors] == [(slice(4, 19), slice(0, 3))]


def test_a_row_of_one_conversation_is_not_gathered() -> None:
    backend = TorchVarlenBackend(kernel=torch_kernel)
    one = backend.plan([Segment(0, 5, ((0, 5),))], 5, torch.device("cpu"))
    assert one.gather_indices is None
    two = backend.plan(build_segments(tree_of([(1, 2), (1, 3)])), 3, torch.device("cpu"))
    assert two.gather_indices is not None
    assert two.gather_indices.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(("activated", "splits"), [(None, None), ("FA3", 1)])
def test_splits_are_switched_off_where_there_are_any(
    activated: str | None, splits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "torch.nn.attention.current_flash_attention_impl", lambda: activated, raising=False
    )

    def older(query: torch.Tensor, *_: object, scale: float, window_size: object) -> torch.Tensor:
        return query

    seen: list[object] = []

    def newer(
        query: torch.Tensor,
        *_: object,
        scale: float,
        window_size: object,
        enable_gqa: bool = False,
        num_splits: int | None = None,
    ) -> torch.Tensor:
        seen.append((enable_gqa, num_splits))
        return query

    query, key, value = tensors(3)
    for kernel in (older, newer):
        for deterministic in (False, True):
            backend = TorchVarlenBackend(deterministic, kernel)
            plan = backend.plan([Segment(0, 3, ((0, 3),))], 3, query.device)
            assert backend.attend(plan, query, key, value, PLAIN) is query
    assert seen == [(True, None), (True, splits)]
