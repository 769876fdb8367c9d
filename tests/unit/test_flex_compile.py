"""FlexAttention is compiled once for its self-check and all batches; compiler failures.

The kernel is traced as on a GPU, by the real Dynamo; the traced graphs then run uncompiled.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from forward_stub import ForwardStub
from reference import CONVERSATIONS

from rm_core import BatchConfig, CompilerFailedError, ModelConfig, Reward, RewardScorer
from rm_core.attention import AttentionChoice, AttentionTarget, choose_attention
from rm_core.compilation import RECOMPILE_LIMIT, recompile_options
from rm_core.config import Attention
from rm_core.model.device_errors import convert_device_errors, is_compiler_error
from serve.errors import ReplicaBusyError, ReplicaLostError
from serve.worker.worker import Worker

ScorerOf = Callable[..., RewardScorer]
PathOf = Callable[[str], Path]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run flex on the CPU as the graphs that Dynamo traced, and list them."""
    compile_ = torch.compile
    traced: list[Any] = []

    def backend(graph: Any, _: object) -> Any:
        traced.append(graph)
        return graph.forward

    @functools.wraps(compile_)
    def traced_compile(function: Any, **options: Any) -> Any:
        return compile_(function, **{**options, "backend": backend})

    monkeypatch.setattr(torch, "compile", traced_compile)

    def choose(target: AttentionTarget, requested: Attention) -> AttentionChoice:
        # The scorers that tests share keep theirs.
        if requested == "flex":
            return AttentionChoice("flex", "for the test")
        return choose_attention(target, requested)

    monkeypatch.setattr("rm_core.model.loading.choose_attention", choose)
    return traced


def score_on_another_thread(scorer: RewardScorer) -> list[float]:
    """Score on another thread than the load, as the worker does."""
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(scorer.score, CONVERSATIONS).result()
    assert all(isinstance(result, Reward) for result in results), results
    return [result.reward for result in results if isinstance(result, Reward)]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("llama-v0.2", marks=pytest.mark.slow),
        pytest.param("qwen3", marks=pytest.mark.slow),
        "gemma2",
    ],
)
def test_batches_reuse_kernels_of_backend_check(
    name: str, graphs: list[Any], checkpoint_of: PathOf, scorer_of: ScorerOf
) -> None:
    # The model's self-check is a batch too, and would compile kernels that the backend's did not.
    config = ModelConfig(str(checkpoint_of(name)), device="cpu", attention="flex", self_check=False)
    scorer = RewardScorer.load(config)
    compiled = len(graphs)
    assert compiled >= 1
    expected = [r.reward for r in scorer_of(name).score(CONVERSATIONS)]  # type: ignore[union-attr]
    assert score_on_another_thread(scorer) == pytest.approx(expected, abs=1e-4, rel=0)
    # From one block of 128 tokens to ten: the number of heads, and other numbers.
    for length in range(60, 1300, 120):
        (reward,) = scorer.score_ids([tuple(range(3, 60)) * (length // 57 + 1)]).outputs
        assert isinstance(reward, float)
    assert len(graphs) == compiled


@pytest.mark.slow
def test_many_models_in_one_process_share_kernels(graphs: list[Any], checkpoint_of: PathOf) -> None:
    """Nine models need at most 8 kernels, the number that torch caches by default."""
    for dtype in ("float32", "bfloat16", "float16"):
        for name in ("llama-v0.2", "qwen3", "gemma2"):
            if (dtype, name) == ("float16", "gemma2"):
                continue  # refused: it overflows
            config = ModelConfig(
                str(checkpoint_of(name)),
                device="cpu",
                attention="flex",
                dtype=dtype,  # type: ignore[arg-type]
            )
            score_on_another_thread(RewardScorer.load(config))
    assert len(graphs) <= 8


def test_limit_of_compiled_kernels_is_raised_on_every_thread() -> None:
    compiled = torch.compile(
        lambda rows: rows + 1, backend="eager", dynamic=False, fullgraph=True, **recompile_options()
    )
    with ThreadPoolExecutor(1) as pool:
        for length in range(1, 20):
            assert len(pool.submit(compiled, torch.ones(length)).result()) == length
    assert RECOMPILE_LIMIT > 20


def fail_to_compile(kind: str) -> Callable[..., list[float]]:
    """Return a forward pass whose compiler fails at the second length, in one of several ways."""

    def backend(graph: Any, _: object) -> Any:
        if kind == "backend" and compiled_once:
            raise RuntimeError("no space left on device")
        compiled_once.append(True)
        return graph.forward

    def function(rows: torch.Tensor) -> torch.Tensor:
        if kind == "unsupported" and len(rows) != 5:
            torch._dynamo.graph_break()
        return rows + 1

    compiled_once: list[bool] = []
    compiled = torch.compile(function, backend=backend, dynamic=False, fullgraph=True)

    def forward(_loaded: object, tree: Any, *_: Any) -> list[float]:
        with torch._dynamo.config.patch(recompile_limit=1 if kind == "limit" else 8):
            compiled(torch.ones(tree.num_tokens))
        return [0.5] * len(tree.sequences)

    return forward


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("limit", "FailOnRecompileLimitHit"),
        ("backend", "BackendCompilerFailed"),
        ("unsupported", "Unsupported"),
    ],
)
def test_compiler_failure_raises_compiler_failed_error(
    kind: str,
    error: str,
    scorer_of: ScorerOf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The batch is not halved, and the log says what to do."""
    forward, calls = fail_to_compile(kind), []

    def counted(*arguments: Any) -> list[float]:
        calls.append(arguments[1].num_tokens)
        return forward(*arguments)

    batching = BatchConfig(prefix_cache_bytes=0)
    scorer = RewardScorer(scorer_of("qwen3").loaded_model, batching, counted)
    assert scorer.score_ids([(3, 4, 5, 6, 7)]).outputs == (0.5,)
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(CompilerFailedError, match="not caused by a conversation") as caught,
    ):
        scorer.score_ids([(3, 4, 5), (5, 6), (7,)])
    assert error in caught.value.detail
    assert calls == [5, 6]
    assert "set `attention` to 'eager'" in caplog.text


def test_worker_with_failed_compiler_is_unhealthy(scorer_of: ScorerOf) -> None:
    """Its batch goes to another replica, and the worker rejects further batches."""

    async def run() -> None:
        forward = ForwardStub()
        worker = Worker(RewardScorer(scorer_of("qwen3").loaded_model, forward=forward))
        forward.run = fail_to_compile("limit")
        await worker.run_batch([(3, 4, 5, 6, 7)])
        with pytest.raises(ReplicaLostError, match="compiler of a kernel failed"):
            await worker.run_batch([(3, 4), (5,)])
        with pytest.raises(ReplicaBusyError):
            await worker.run_batch([(3, 4, 5, 6, 7)])
        worker.close()

    asyncio.run(run())


def test_compiler_out_of_memory_raises_out_of_memory() -> None:
    """A smaller batch may succeed: the scorer halves the batch."""

    def backend(_graph: object, _inputs: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    compiled = torch.compile(lambda rows: rows + 1, backend=backend, fullgraph=True)
    with pytest.raises(torch.OutOfMemoryError), convert_device_errors():
        compiled(torch.ones(3))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
)
def test_every_kind_of_out_of_memory_is_one(error: Exception) -> None:
    """The batch is halved, and the replica lives on."""
    with pytest.raises(torch.OutOfMemoryError) as caught, convert_device_errors():
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_are_not_converted() -> None:
    for error in (ValueError("x"), RuntimeError("shape"), IndexError(), torch.OutOfMemoryError()):
        assert not is_compiler_error(error)
        with pytest.raises(type(error)), convert_device_errors():
            raise error
