"""Compiled layers give the same rewards, and are compiled once for rows of any length.

`compile: auto` is tested with a device that is not there.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import CONVERSATIONS

from rm_core import BatchConfig, ModelConfig, RewardScorer
from rm_core.compilation import choose_compilation, find_compiler_failure
from rm_core.packing import TokenIds

PathOf = Callable[[str], Path]
ScorerOf = Callable[..., RewardScorer]
pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's own warnings


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def build_batches(scorer: RewardScorer) -> list[list[TokenIds]]:
    """Return batches of 20 lengths, among them the model's and a head's width and the heads."""
    sequences = [scorer.encoder.encode(messages).input_ids for messages in CONVERSATIONS]
    longest = max(sequences, key=len)
    return [
        *([ids] for ids in sorted(sequences, key=len)[::2]),
        sequences[:3],
        sequences,
        *([longest[:length]] for length in (1, 2, 4, 15, 16, 32, 63, 64, 65, 128, 200)),
    ]


def compare_all(compiled: RewardScorer, plain: RewardScorer) -> int:
    """Score every batch both ways; return how many graphs were compiled after the first one."""
    after_first = 0
    for index, batch in enumerate(build_batches(plain)):
        ours, expected = compiled.score_ids(batch).outputs, plain.score_ids(batch).outputs
        assert list(ours) == pytest.approx(list(expected), abs=1e-4, rel=0)
        if index == 0:
            after_first = count_graphs()
            assert after_first > 0
    return count_graphs() - after_first


def count_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.usefixtures("trace_only")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("llama-v0.2", marks=pytest.mark.slow),
        pytest.param("qwen3", marks=pytest.mark.slow),
        "gemma2",
    ],
)
def test_layers_are_traced_once_for_all_lengths(
    name: str, checkpoint_of: PathOf, scorer_of: ScorerOf
) -> None:
    """One graph for each kind of layer, with and without the prefix cache, attention included.

    Rows of a single token are an exception, since torch always compiles them separately.
    """
    config = ModelConfig(str(checkpoint_of(name)), device="cpu", compile=True)
    scorer = RewardScorer.load(config)
    assert scorer.describe().compiled is True
    num_kinds = 2 if name == "gemma2" else 1
    assert count_graphs() == num_kinds
    more = compare_all(scorer, scorer_of(name))
    assert more <= num_kinds
    assert not torch._dynamo.utils.counters["graph_break"]
    # Prompts are in the cache now.
    prompt = scorer.encoder.encode(CONVERSATIONS[0]).input_ids[:-1]
    batch = [(*prompt, token) for token in range(3, 9)]
    scored = scorer.score_ids(batch)
    assert scored.num_prefix_tokens > 0
    uncached = RewardScorer(scorer_of(name).loaded_model, BatchConfig(prefix_cache_bytes=0))
    expected = uncached.score_ids(batch).outputs
    assert list(scored.outputs) == pytest.approx(list(expected), abs=1e-4, rel=0)
    assert count_graphs() == num_kinds + more


@pytest.mark.usefixtures("trace_only")
def test_quantized_layers_are_one_graph(checkpoint_of: PathOf) -> None:
    config = ModelConfig(str(checkpoint_of("qwen3")), device="cpu", quantization="int8")
    compare_all(
        RewardScorer.load(dataclasses.replace(config, compile=True)), RewardScorer.load(config)
    )
    assert not torch._dynamo.utils.counters["graph_break"]
    assert count_graphs() <= 2


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the compiler took over 600 s on a busy machine
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for CPUs needs g++")
def test_compiled_layers_give_rewards_of_plain_layers(
    checkpoint_of: PathOf, scorer_of: ScorerOf
) -> None:
    """With the real compiler, on the family with two kinds of layers."""
    config = ModelConfig(str(checkpoint_of("gemma2")), device="cpu", compile=True)
    compare_all(RewardScorer.load(config), scorer_of("gemma2"))
    assert count_graphs() <= 4


@pytest.mark.parametrize(
    ("device", "options", "compiled", "reason"),
    [
        ("cuda", {}, True, "fewer kernels"),
        ("cuda", {"deterministic": True}, False, "`deterministic` must not vary"),
        ("cuda", {"num_devices": 2}, False, "several devices"),
        ("cpu", {}, False, "slower on CPUs"),
        ("cuda", {"requested": False}, False, "setting `compile`"),
        ("cpu", {"requested": True}, True, "setting `compile`"),
    ],
)
def test_auto_compiles_on_one_cuda_device(
    device: str,
    options: dict[str, Any],
    compiled: bool,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rm_core.compilation.find_compiler_failure", lambda _: None)
    defaults = {"requested": "auto", "num_devices": 1, "deterministic": False}
    choice = choose_compilation(device=torch.device(device), **{**defaults, **options})
    assert choice.is_compiled is compiled
    assert reason in choice.reason


def test_auto_does_not_compile_where_the_compiler_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def backend(_graph: object, _inputs: object) -> Any:
        raise FileNotFoundError("Failed to find C compiler")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", functools.partial(compile_, backend=backend))
    failure = find_compiler_failure(torch.device("cpu"))
    assert failure is not None
    assert "Failed to find C compiler" in failure
    monkeypatch.setattr("rm_core.compilation.find_compiler_failure", lambda _: failure)
    choice = choose_compilation("auto", torch.device("cuda"), num_devices=1, deterministic=False)
    assert not choice.is_compiled
    assert choice.reason == f"the compiler failed its check on this device: {failure}"
    assert "layers run uncompiled" in caplog.text


def test_compiler_that_works_passes_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    assert find_compiler_failure(torch.device("cpu")) is None
