"""The compiled kernel for CPUs against attention in float64, for each vector size of a machine."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch
from examples import limit_examples
from hypothesis import given
from hypothesis import strategies as st

from rm_core import ModelConfig, RewardScorer
from rm_core.attention import AttentionParams, Segment, build_segments, build_token_segments
from rm_core.attention.cpu_kernel import CpuKernelBackend
from rm_core.cpu_kernels import FLAGS, KernelBuildError, compile_kernels
from rm_core.packing import PrefixTree, pack

CPU = torch.device("cpu")
# With vectors of the machine's size, and of 8 and 4 floats where it has larger ones.
KERNELS = {"native": FLAGS, "8": (*FLAGS, "-mno-avx512f"), "4": (*FLAGS, "-mno-avx")}
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def compute_expected(segments: list[Segment], tensors: Tensors, scaling: float) -> torch.Tensor:
    query, key, value = (tensor.double() for tensor in tensors)
    repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, 1) for tensor in (key, value))
    out = torch.empty_like(query)
    for segment in segments:
        keys = [index for start, stop in segment.keys for index in range(start, stop)]
        scores = torch.einsum("qhd,khd->hqk", query[segment.start : segment.stop], key[keys])
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(
            segment.num_keys - segment.num_queries + 1
        )
        weights = (scores * scaling).masked_fill(later, float("-inf")).softmax(-1)
        out[segment.start : segment.stop] = torch.einsum("hqk,khd->qhd", weights, value[keys])
    return out


def draw_tensors(num_queries: int, num_keys: int, heads: tuple[int, int], dim: int) -> Tensors:
    generator = torch.Generator().manual_seed(num_keys)
    query = torch.randn(num_queries, heads[0], dim, generator=generator)
    key, value = torch.randn(2, num_keys, heads[1], dim, generator=generator)
    return query, key, value


def attend(
    segments: list[Segment], tensors: Tensors, scaling: float, flags: tuple[str, ...] = FLAGS
) -> torch.Tensor:
    backend = CpuKernelBackend(compile_kernels(flags))
    plan = backend.plan(segments, len(tensors[1]), CPU)
    return backend.attend(plan, *tensors, AttentionParams(scaling))


@st.composite
def trees(draw: st.DrawFn) -> PrefixTree:
    """Prompts with several answers, some of which continue others; a part may be in the cache."""
    lengths = st.integers(1, 150)
    sequences = []
    for prompt in range(draw(st.integers(1, 3))):
        start = [(prompt, 0, i) for i in range(draw(lengths))]
        for answer in range(draw(st.integers(1, 4))):
            start_of_answer = draw(st.sampled_from([start, *sequences[-1:]]))
            rest = [(prompt, answer + 1, i) for i in range(draw(lengths))]
            sequences.append([*start_of_answer, *rest])
    ids = {token: i for i, token in enumerate(dict.fromkeys(itertools.chain(*sequences)))}
    rows = [tuple(ids[token] for token in sequence) for sequence in sequences]
    (tree,) = pack(rows, 10**6).batches
    cached = []
    for segment in tree.segments:
        # A token at which a sequence is read is never cached.
        read = [row for row in tree.all_read_rows if segment.start <= row < segment.stop]
        limit = min([segment.stop, *read]) - segment.start
        cached.append(draw(st.integers(0, limit)) if segment.parent < 0 else 0)
    return tree.exclude_cached(cached)


@pytest.mark.parametrize("kernel", KERNELS)
@hypothesis.settings(max_examples=limit_examples(25))
@given(
    tree=trees(),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 3), (64, 1)]),
    dim=st.sampled_from([1, 8, 20, 64, 80, 128]),
    scaling=st.sampled_from([0.1, 1.0, 50.0]),
)
def test_kernel_equals_attention_in_float64(
    kernel: str, tree: PrefixTree, heads: tuple[int, int], dim: int, scaling: float
) -> None:
    for segments in (build_segments(tree), build_token_segments(tree, sorted(tree.ends))):
        tensors = draw_tensors(segments[-1].stop, tree.num_keys, heads, dim)
        out = attend(segments, tensors, scaling, KERNELS[kernel])
        expected = compute_expected(segments, tensors, scaling)
        # Scores are rounded in proportion to their size: up to 10 times their deviation here.
        tolerance = 8e-6 * max(1.0, scaling * dim**0.5)
        torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_weights_do_not_depend_on_the_size_of_scores(kernel: str, shift: float) -> None:
    """Scores of -300 and 300, whose exponentials float32 does not have, differ by little."""
    segments = [Segment(0, 200, ((0, 200),))]
    query, key, value = draw_tensors(200, 200, (2, 1), 16)
    key[..., 0], query[..., 0] = shift, 1.0
    tensors = query, key, value
    out = attend(segments, tensors, 1.0, KERNELS[kernel])
    expected = compute_expected(segments, tensors, 1.0)
    torch.testing.assert_close(out.double(), expected, atol=2e-4, rtol=0)


def test_tensors_may_have_any_strides() -> None:
    segments = [Segment(0, 100, ((0, 100),))]
    tensors = draw_tensors(100, 100, (4, 2), 24)
    expected = attend(segments, tensors, 0.2)
    for dims in ((1, 0, 2), (2, 1, 0), (0, 2, 1)):
        order = [dims.index(dim) for dim in range(3)]
        query, key, value = (t.permute(dims).contiguous().permute(order) for t in tensors)
        assert torch.equal(attend(segments, (query, key, value), 0.2), expected)


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    segments = [Segment(0, 300, ((0, 300),)), Segment(300, 420, ((0, 150), (300, 420)))]
    tensors = draw_tensors(420, 420, (4, 2), 32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(attend(segments, tensors, 0.2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_stay_in_their_conversation(value: float) -> None:
    """The device's finite check must see them, and the neighbors must not change."""
    segments = [Segment(0, 70, ((0, 70),)), Segment(70, 140, ((70, 140),))]
    tensors = draw_tensors(140, 140, (2, 1), 16)
    clean = attend(segments, tensors, 0.2)
    for tensor in tensors:
        kept = tensor[69].clone()
        tensor[69] = value
        out = attend(segments, tensors, 0.2)
        assert torch.equal(out[70:], clean[70:])
        assert not out[69].isfinite().any()
        tensor[69] = kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    segments = [Segment(0, 90, ((0, 90),))]
    query, key, value = (t.to(dtype) for t in draw_tensors(90, 90, (2, 1), 16))
    out = attend(segments, (query, key, value), 0.2)
    assert out.dtype == dtype
    expected = attend(segments, (query.float(), key.float(), value.float()), 0.2)
    assert torch.equal(out, expected.to(dtype))


def break_compiler(folder: Path) -> None:
    compiler = folder / "g++"
    compiler.write_text(
        "#!/bin/sh\necho 'cpu_kernel.cpp: fatal error: cmath: no such file' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda _: None, "No such file or directory: 'g++'"),
        (break_compiler, "fatal error: cmath: no such file"),
    ],
)
def test_without_a_working_compiler_torch_computes_attention(
    prepare: Callable[[Path], None],
    reason: str,
    tmp_path: Path,
    checkpoint_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = str(checkpoint_of("qwen3"))
    conversation = [{"role": "user", "content": "Name a river."}]
    compiled = RewardScorer.load(ModelConfig(folder, device="cpu")).score([conversation])
    prepare(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    compile_kernels.cache_clear()
    scorer = RewardScorer.load(ModelConfig(folder, device="cpu"))
    info = scorer.describe()
    assert info.attention == "sdpa"
    assert reason in info.attention_reason
    assert "torch's SDPA kernel is used, which is slower" in caplog.text
    assert scorer.score([conversation]) == pytest.approx(compiled, abs=1e-5)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (subprocess.TimeoutExpired("g++", 1, stderr=b"slow: error\n"), "slow: error"),
        (subprocess.CalledProcessError(1, "g++", stderr=" \n"), "returned non-zero exit status 1"),
        (OSError("cannot open shared object file"), "cannot open shared object file"),
    ],
)
def test_every_failure_to_build_is_one_error(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("subprocess.run", fail)
    with pytest.raises(KernelBuildError, match=message):
        compile_kernels((*FLAGS, "-DUNUSED"))
