"""On CUDA: rewards of small checkpoints compared with plain transformers, backend by backend.

The tests need only torch, transformers and pytest. On a machine without other packages:
`PYTHONPATH=.:tests python -m pytest -c /dev/null --noconftest tests/gpu`

In float32, and in bfloat16 with the reference's own attention, rewards equal the reference's. In
bfloat16 another kernel rounds differently, and on random weights both differ from float32 by many
steps: measured on CPUs, 0.07 to 0.11 on average for eager and 0.05 to 0.09 for SDPA at rewards of
-15 to 9, while Gemma-2 without its softcap differs by 0.26 to 0.63 and without its window by more
than 2. Other kernels may therefore differ at most twice as much as eager, or one step more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SPECS, build_checkpoint
from gpu.parity import compute_allowed_error
from kinds import build_judge, build_step_model
from reference import CONVERSATIONS, Messages, Reference

from rm_core import BatchConfig, ModelConfig, ModelLoadError, Reward, RewardScorer
from rm_core.attention.select import is_flash_attn_4_installed, is_flash_attn_installed
from rm_core.model.placement import is_new_gpu
from rm_core.tolerance import bfloat16_step
from rm_core.verification import verify

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

FAMILIES = ["llama-v0.2", "qwen3", "gemma2"]
HAS_FLASH_4 = (
    torch.cuda.is_available() and is_flash_attn_4_installed() and is_new_gpu(torch.device("cuda"))
)
FLASH_4 = pytest.mark.skipif(not HAS_FLASH_4, reason="flash-attn-4 is not installed")
FLASH = pytest.mark.skipif(not is_flash_attn_installed(), reason="flash-attn is not installed")
HALF_PRECISION = [
    *((name, way) for name in FAMILIES for way in ("auto", "flex")),
    *((name, "varlen") for name in FAMILIES if name != "gemma2"),
    *(pytest.param(name, "flash_attention_2", marks=FLASH) for name in FAMILIES),
    *(pytest.param(name, "flash_attention_4", marks=FLASH_4) for name in FAMILIES),
]
BUDGET = 16_384
PathOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> PathOf:
    root = tmp_path_factory.mktemp("gpu")
    return functools.cache(lambda name: build_checkpoint(root / name, SPECS[name]))


def load(path: Path, attention: str, batch: int = BUDGET, **settings: Any) -> RewardScorer:
    config = ModelConfig(str(path), device="cuda", attention=attention, **settings)
    return RewardScorer.load(config, BatchConfig(batch))


def rewards(scorer: RewardScorer, conversations: list[Messages]) -> list[float]:
    results = scorer.score(conversations)
    assert all(isinstance(result, Reward) for result in results), results
    return [result.reward for result in results if isinstance(result, Reward)]


@functools.cache
def references(path: Path, dtype: torch.dtype, device: str = "cuda") -> list[float]:
    reference = Reference(path, dtype, device)
    return [reference.reward(messages) for messages in CONVERSATIONS]


def mean_difference(left: list[float], right: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(left, right, strict=True)) / len(left)


def compute_eager_error(path: Path) -> float:
    """Return the mean difference of plain transformers in bfloat16 from float32."""
    exact = references(path, torch.float32, "cpu")
    return mean_difference(references(path, torch.bfloat16), exact)


def get_allowed_error(path: Path) -> float:
    """Return the allowed mean difference of another kernel from float32."""
    return compute_allowed_error(compute_eager_error(path), references(path, torch.float32, "cpu"))


@pytest.mark.parametrize("attention", ["auto", "eager", "flex"])
@pytest.mark.parametrize("name", FAMILIES)
def test_float32_rewards_equal_reference(name: str, attention: str, checkpoint_of: PathOf) -> None:
    scorer = load(checkpoint_of(name), attention, dtype="float32")
    expected = "eager" if attention == "auto" else attention
    assert scorer.describe().attention == expected
    ours = rewards(scorer, CONVERSATIONS)
    assert ours == pytest.approx(references(checkpoint_of(name), torch.float32), abs=1e-4, rel=0)
    assert max(ours) - min(ours) > 1


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_eager_is_within_one_step(name: str, checkpoint_of: PathOf) -> None:
    """Sequences are scored one by one, so that most products have the reference's shapes.

    Products of attention have other shapes: attention runs in blocks of queries, and another order
    of sums changes a reward by up to 1.5 steps. The step of a reward near 0 is far smaller than the
    effect of rounding.
    """
    scorer = load(checkpoint_of(name), "eager", batch=1, dtype="bfloat16")
    assert scorer.loaded_model.head.row.dtype == torch.float32
    expected = references(checkpoint_of(name), torch.bfloat16)
    rounding = 0.25 * compute_eager_error(checkpoint_of(name))
    for our, theirs in zip(rewards(scorer, CONVERSATIONS), expected, strict=True):
        assert abs(our - theirs) <= max(1.5 * bfloat16_step(theirs), rounding)


@pytest.mark.parametrize(("name", "attention"), HALF_PRECISION)
def test_bfloat16_kernels_are_as_exact_as_eager(
    name: str, attention: str, checkpoint_of: PathOf
) -> None:
    scorer = load(checkpoint_of(name), attention, dtype="bfloat16")
    if attention != "auto":
        assert scorer.describe().attention == attention
    exact = references(checkpoint_of(name), torch.float32, "cpu")
    ours = rewards(scorer, CONVERSATIONS)
    assert mean_difference(ours, exact) <= get_allowed_error(checkpoint_of(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_neighbors_order_and_batches_change_little(name: str, checkpoint_of: PathOf) -> None:
    scorer = load(checkpoint_of(name), "auto")
    together = rewards(scorer, CONVERSATIONS)
    backwards = rewards(scorer, CONVERSATIONS[::-1])[::-1]
    few = rewards(load(checkpoint_of(name), "auto", batch=50), CONVERSATIONS)
    alone = [rewards(scorer, [messages])[0] for messages in CONVERSATIONS]
    limit = get_allowed_error(checkpoint_of(name))
    for other in (backwards, few, alone):
        assert mean_difference(together, other) <= limit


@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_deterministic_mode_is_bit_for_bit(
    name: str, attention: str, checkpoint_of: PathOf
) -> None:
    """The budget splits the conversations into several batches, always padded to the budget."""
    scorer = load(checkpoint_of(name), attention, batch=512, deterministic=True)
    together = rewards(scorer, CONVERSATIONS)
    assert rewards(scorer, CONVERSATIONS[::-1])[::-1] == together
    assert rewards(scorer, CONVERSATIONS[1::2]) == together[1::2]
    assert [rewards(scorer, [messages])[0] for messages in CONVERSATIONS] == together
    exact = references(checkpoint_of(name), torch.float32, "cpu")
    assert mean_difference(together, exact) <= get_allowed_error(checkpoint_of(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_on_cuda(name: str, checkpoint_of: PathOf) -> None:
    described = load(checkpoint_of(name), "auto").describe()
    without_flash = "flex" if name == "gemma2" else "varlen"
    assert described.dtype == "bfloat16"
    assert described.head_dtype == "float32"
    assert described.device.startswith("cuda")
    expected = "flash_attention_2" if is_flash_attn_installed() else without_flash
    if HAS_FLASH_4:
        expected = "flash_attention_4"
    assert described.attention == expected, described.attention_reason
    assert "flash-attn" in described.attention_reason
    deterministic = load(checkpoint_of(name), "auto", deterministic=True).describe()
    expected = "eager" if name == "gemma2" else "varlen"
    assert deterministic.attention == expected, deterministic.attention_reason


@pytest.mark.parametrize(
    ("name", "attention", "reason"),
    [("gemma2", "sdpa", "softcap"), ("gemma2", "varlen", "softcap"), ("qwen3", "sdpa", "CPUs")],
)
def test_backend_that_would_score_wrongly_is_refused(
    name: str, attention: str, reason: str, checkpoint_of: PathOf
) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        load(checkpoint_of(name), attention)


@pytest.mark.parametrize("name", FAMILIES)
def test_compiled_layers_give_rewards_of_plain_layers(name: str, checkpoint_of: PathOf) -> None:
    """One by one and together: rows of more lengths than compiled layers that torch caches."""
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    scorer = load(checkpoint_of(name), "auto", batch=1024, compile=True)
    graphs = set()
    alone = []
    for messages in CONVERSATIONS:
        alone += rewards(scorer, [messages])
        graphs.add(counters["stats"]["unique_graphs"])
    lengths = {scorer.encoder.encode(messages).num_tokens for messages in CONVERSATIONS}
    assert len(lengths) >= 9
    compiled = rewards(scorer, CONVERSATIONS)
    exact = references(checkpoint_of(name), torch.float32, "cpu")
    for ours in (alone, compiled):
        assert mean_difference(ours, exact) <= get_allowed_error(checkpoint_of(name))
    # The first row compiles; beyond the limit layers would run uncompiled without an error.
    assert graphs | {counters["stats"]["unique_graphs"]} == {max(graphs)}
    assert 0 < max(graphs) <= 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["step", "judge"])
def test_step_models_and_judges_equal_plain_transformers(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    folder = build_step_model(tmp_path) if kind == "step" else build_judge(tmp_path)
    checks = verify(load(folder, "auto", dtype=dtype, kind=kind if kind == "judge" else "auto"))
    assert len(checks) >= 10
    assert [check for check in checks if not check.passed] == []
