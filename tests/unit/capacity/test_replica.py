"""Memory and rate of one replica, compared with the engine's token budget and with known values."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rm_core.memory import choose_budget
from serve.capacity.devices import DEVICES
from serve.capacity.replica import RUNTIME_BYTES, Load, Rate, estimate_memory, estimate_rate
from serve.capacity.shape import find_model_shape
from serve.errors import PlanError

LLAMA = find_model_shape("Skywork-Reward-V2-Llama-3.1-8B")
GEMMA = find_model_shape("Skywork-Reward-Gemma-2-27B-v0.2")
PAIRS = Load(10, 400, 400, 2)


def test_memory_of_8b_on_one_h200() -> None:
    """15.0 GB of weights in bfloat16, and 135,168 bytes for each of 16,384 tokens."""
    memory = estimate_memory(LLAMA, DEVICES["h200"], torch.bfloat16)
    assert memory.weights_bytes == 2 * LLAMA.num_parameters == pytest.approx(15.01e9, rel=1e-3)
    assert memory.activation_bytes == 16_384 * 135_168
    assert memory.max_batch_tokens == 16_384
    assert memory.peak_bytes == memory.weights_bytes + RUNTIME_BYTES + memory.activation_bytes
    assert memory.peak_bytes < memory.device_bytes


def test_token_budget_equals_that_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    device = dataclasses.replace(DEVICES["l4"], memory_bytes=21 << 30)
    memory = estimate_memory(GEMMA, device, torch.bfloat16, 3)
    free = device.memory_bytes - memory.weights_bytes - RUNTIME_BYTES
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, 0))
    budget = choose_budget(None, GEMMA, torch.bfloat16, torch.device("cuda"))
    assert memory.max_batch_tokens == budget.max_batch_tokens < 4_096
    assert memory.peak_bytes < memory.device_bytes


def test_27b_fits_on_two_smaller_gpus() -> None:
    with pytest.raises(PlanError, match="--gpus-per-replica 2"):
        estimate_memory(GEMMA, DEVICES["l40s"], torch.bfloat16)
    memory = estimate_memory(GEMMA, DEVICES["l40s"], torch.bfloat16, 2)
    assert memory.weights_bytes < 30e9
    assert memory.peak_bytes < memory.device_bytes
    assert estimate_memory(GEMMA, DEVICES["h100"], torch.bfloat16).max_batch_tokens >= 4_096
    with pytest.raises(PlanError, match="--gpus-per-replica 3"):
        estimate_memory(GEMMA, DEVICES["l4"], torch.bfloat16, 2)


@pytest.mark.parametrize("gpu", DEVICES)
def test_8b_fits_on_every_gpu(gpu: str) -> None:
    memory = estimate_memory(LLAMA, DEVICES[gpu], torch.bfloat16)
    assert memory.peak_bytes < memory.device_bytes


def test_rate_is_a_share_of_the_data_sheet_rate() -> None:
    inferred = estimate_rate(LLAMA, DEVICES["h200"], PAIRS)
    assert inferred.low < inferred.tokens_per_s < inferred.high
    assert inferred.status == "inferred"
    given = estimate_rate(LLAMA, DEVICES["h200"], PAIRS, matrix_flops=700e12, efficiency=0.5)
    flops = LLAMA.count_group_flops(400, 400, 2)
    assert given.tokens_per_s == pytest.approx(1_200 * 350e12 / flops)
    assert given.low == given.high == given.tokens_per_s
    assert given.status == "given"


def test_longer_conversations_cost_more_per_token() -> None:
    rates = [
        estimate_rate(LLAMA, DEVICES["h200"], Load(1, 0, length, 1)).tokens_per_s
        for length in (100, 1_000, 10_000)
    ]
    assert rates == sorted(rates, reverse=True)
    assert rates[2] < 0.9 * rates[0]


def test_group_shares_its_prompt() -> None:
    rate = Rate(1_200, 1_200, 1_200, "given", "")
    assert rate.conversations_per_s(PAIRS) == 2
    assert rate.conversations_per_s(Load(1, 400, 400, 1)) == 1.5


@pytest.mark.parametrize("wrong", [{"cached_share": 1.0}, {"conversations_per_s": 0.0}])
def test_invalid_load_raises_error(wrong: dict[str, float]) -> None:
    with pytest.raises(PlanError):
        Load(
            **{
                "conversations_per_s": 1.0, "prompt_tokens": 1, "response_tokens": 1,
                "group_size": 1, **wrong,
            }
        )  # fmt: skip
