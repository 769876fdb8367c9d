"""Float32 products are IEEE with any settings of the host; a device that rounds them is refused.

TF32 is emulated on the CPU: the factors of every float32 product are rounded to 10 bits, always or
if torch's setting for CUDA enables TF32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.models import SHAPES, build
from reference import CONVERSATIONS
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel
from vision import build_vision_model

from rm_core import ModelConfig, ModelLoadError, Reward, RewardScorer
from rm_core.model.precision import check_precision, use_ieee_products

PathOf = Callable[[str], Path]
ScorerOf = Callable[..., RewardScorer]
CPU = torch.device("cpu")
SETTINGS: dict[str, Callable[[], None]] = {
    "matmul precision": lambda: torch.set_float32_matmul_precision("high"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "fp32_precision": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "all backends": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}


@pytest.fixture(autouse=True)
def _settings_restored() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    backends: Any = torch.backends
    for backend in (backends, backends.cuda.matmul, backends.mkldnn.matmul):
        backend.fp32_precision = "none"


def round_to_tf32(tensor: torch.Tensor) -> torch.Tensor:
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


class Tf32(TorchDispatchMode):
    """Rounds the factors of float32 products as TF32 does.

    Args:
        always: whether to round regardless of torch's setting.
    """

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.always = always
        self.num_rounded = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        product = any(f"::{op}" in name for op in ("matmul", "mm", "bmm", "addmm", "dot", "linear"))
        on = self.always or torch.backends.cuda.matmul.fp32_precision == "tf32"
        if product and on:
            self.num_rounded += 1
            args = [
                round_to_tf32(a) if isinstance(a, torch.Tensor) and a.dtype == torch.float32 else a
                for a in args
            ]
        return func(*args, **(kwargs or {}))


def rewards(scorer: RewardScorer) -> list[float]:
    results = scorer.score(CONVERSATIONS)
    assert all(isinstance(result, Reward) for result in results), results
    return [result.reward for result in results if isinstance(result, Reward)]


def plain_config(folder: Path) -> ModelConfig:
    """Return a config without prepacked weights, whose products the emulation does not see."""
    return ModelConfig(str(folder), device="cpu", attention="eager", deterministic=True)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("when", ["before the load", "after the load"])
def test_tf32_settings_of_host_do_not_change_rewards(
    setting: str, when: str, checkpoint_of: PathOf, scorer_of: ScorerOf
) -> None:
    if when == "before the load":
        SETTINGS[setting]()
    with Tf32() as mode:
        scorer = RewardScorer.load(plain_config(checkpoint_of("llama-v0.2")))
        SETTINGS[setting]()
        scored = rewards(scorer)
    assert mode.num_rounded == 0
    assert scored == pytest.approx(rewards(scorer_of("llama-v0.2")), abs=1e-4, rel=0)
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_emulated_tf32_changes_rewards(checkpoint_of: PathOf, scorer_of: ScorerOf) -> None:
    scorer = RewardScorer.load(plain_config(checkpoint_of("llama-v0.2")))
    with Tf32(always=True) as mode:
        rounded = rewards(scorer)
    assert mode.num_rounded > 100
    exact = rewards(scorer_of("llama-v0.2"))
    differences = [abs(a - b) for a, b in zip(rounded, exact, strict=True)]
    assert max(differences) > 1e-3


def test_device_that_rounds_products_is_refused(checkpoint_of: PathOf) -> None:
    with (
        Tf32(always=True),
        pytest.raises(
            ModelLoadError, match=r"products on cpu differ from exact products by 0.0003.*TF32"
        ),
    ):
        RewardScorer.load(plain_config(checkpoint_of("qwen3")))


@pytest.mark.parametrize("setting", SETTINGS)
def test_precision_setting_is_restored(setting: str) -> None:
    SETTINGS[setting]()
    backends: Any = torch.backends
    kinds = backends.cuda.matmul, backends.mkldnn.matmul
    before = [kind.fp32_precision for kind in kinds]
    assert "tf32" in before

    @use_ieee_products()
    def compute() -> None:
        with use_ieee_products():
            assert [kind.fp32_precision for kind in kinds] == ["ieee", "ieee"]
            assert torch.get_float32_matmul_precision() == "highest"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compute()
    assert [kind.fp32_precision for kind in kinds] == before


SMALL = {name: SHAPES[name] for name in ("Qwen3-0.6B", "Llama-3.1-8B", "Gemma-2-27B")}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("last", [1, 2049, 8191, 131_071])
def test_rotary_embedding_is_exact(name: str, last: int) -> None:
    """In bfloat16 too, where angles are float32."""
    model = build(SMALL[name], SMALL[name].config(tiny=True), CPU)
    check_precision(model, [CPU], last)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("fault", ["positions", "frequencies", "dtype", "scaling"])
def test_wrong_rotary_embedding_is_refused(
    name: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(SMALL[name], SMALL[name].config(tiny=True), CPU)
    rotary = model.model.rotary_emb
    forward = type(rotary).forward

    def wrong(self: Any, hidden: torch.Tensor, positions: torch.Tensor) -> Any:
        if fault == "positions":  # as in a TF32 product
            return forward(self, hidden, round_to_tf32(positions.float()))
        if fault == "frequencies":
            frequencies = self.inv_freq.clone()
            self.inv_freq.copy_(frequencies.bfloat16())
            result = forward(self, hidden, positions)
            self.inv_freq.copy_(frequencies)
            return result
        return tuple(1.2 * tensor for tensor in forward(self, hidden, positions))

    if fault == "dtype":
        rotary.inv_freq = rotary.inv_freq.bfloat16()
    else:
        monkeypatch.setattr(type(rotary), "forward", wrong)
    with pytest.raises(ModelLoadError, match="rotary"):
        check_precision(model, [CPU], 8191)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("is_merged", [True, False])
def test_rotary_embedding_of_three_rows(
    family: str, is_merged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer releases of transformers merge the rows in the embedding, older ones in each layer."""
    model: Any = AutoModel.from_pretrained(build_vision_model(tmp_path, family))
    rotary = type(model.language_model.rotary_emb)
    forward, factor = rotary.forward, 1.0

    def embed(self: Any, hidden: torch.Tensor, positions: torch.Tensor) -> Any:
        assert positions.shape == (3, 1, 4)
        if is_merged:
            return tuple(factor * tensor for tensor in forward(self, hidden, positions))
        rows = [forward(self, hidden, row.expand(3, 1, -1)) for row in positions]
        return tuple(factor * torch.stack(tensors) for tensors in zip(*rows, strict=True))

    monkeypatch.setattr(rotary, "forward", embed)
    check_precision(model, [CPU], 8191)
    factor = 1.2
    with pytest.raises(ModelLoadError, match="rotary"):
        check_precision(model, [CPU], 8191)
