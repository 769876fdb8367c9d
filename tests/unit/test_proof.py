"""A backend that computes something else is found out when the model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rm_core import ModelConfig, ModelLoadError, RewardScorer
from rm_core.attention import Scores, split
from rm_core.attention.eager import EagerBackend
from rm_core.attention.proof import Heads, prove
from rm_core.attention.split import SplitBackend, SplitPlan

CPU = torch.device("cpu")
HEADS = Heads(num_heads=4, num_key_value_heads=2, head_dim=16)
SCORES = [Scores(0.25), Scores(0.25, softcap=5.0), Scores(0.25, window=40)]


class Careless(EagerBackend):
    """Leaves out what it is told to."""

    def __init__(self, without: str) -> None:
        super().__init__()
        self._without = without

    def attend(
        self,
        plan: object,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        softcap = None if self._without == "softcap" else scores.softcap
        window = None if self._without == "window" else scores.window
        if self._without == "nothing but half a window" and window:
            window -= 1
        return super().attend(plan, query, key, value, Scores(scores.scaling, softcap, window))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_right_backend_passes(dtype: torch.dtype) -> None:
    prove(EagerBackend(), HEADS, SCORES, CPU, dtype)
    prove(EagerBackend(aligned=True), HEADS, SCORES, CPU, dtype)
    prove(SplitBackend(), HEADS, SCORES[:1], CPU, dtype)


@pytest.mark.parametrize("without", ["softcap", "window", "nothing but half a window"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_careless_backend_fails(dtype: torch.dtype, without: str) -> None:
    with pytest.raises(ArithmeticError, match="away from eager"):
        prove(Careless(without), HEADS, SCORES, CPU, dtype)


def without_ancestors(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SplitBackend.plan

    def lossy(self: SplitBackend, *args: object) -> SplitPlan:
        return SplitPlan(plan(self, *args).own, [])  # type: ignore[arg-type]

    monkeypatch.setattr(split.SplitBackend, "plan", lossy)


def test_auto_falls_back_and_says_so(
    checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ancestors(monkeypatch)
    scorer = RewardScorer.load(ModelConfig(str(checkpoint_of("qwen3")), device="cpu"))
    described = scorer.describe()
    assert described["attention"] == scorer.fingerprint.attention == "eager"
    assert described["attention_reason"].startswith("sdpa failed its proof")


def test_what_was_asked_for_is_refused(
    checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ancestors(monkeypatch)
    with pytest.raises(ModelLoadError, match=r"sdpa failed its proof.*use 'auto' or 'eager'"):
        RewardScorer.load(ModelConfig(str(checkpoint_of("qwen3")), device="cpu", attention="sdpa"))
