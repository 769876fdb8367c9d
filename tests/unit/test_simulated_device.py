"""The simulated GPU of benchmarks, and what is concluded from a service in front of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from conftest import ROOT

from rm_core.memory import choose_prefix_cache_size
from rm_core.packing import TokenIds
from serve.capacity.devices import DEVICES
from serve.capacity.replica import RUNTIME_BYTES, Load, estimate_memory, estimate_rate
from serve.capacity.shape import find_model_shape
from serve.config.model_settings import ModelSettings

sys.path.append(str(ROOT / "tests" / "bench"))

from front import Measured
from gateway import find_limit, fit_constants
from simulated import SimulatedBackend, SimulatedDevice
from stages import find_stage

H200 = DEVICES["h200"]
SMALL = find_model_shape("Skywork-Reward-V2-Qwen3-0.6B")
LARGE = find_model_shape("Skywork-Reward-V2-Qwen3-8B")
PROMPT, RESPONSE, GROUP = 300, 50, 16


def group_of(prompt: int, first_response: int = 0) -> list[TokenIds]:
    """Sequences of one prompt; responses share nothing."""
    start = (prompt,) * PROMPT
    return [start + (100 + first_response + i,) * RESPONSE for i in range(GROUP)]


def keep_prompt(_: TokenIds) -> int:
    return PROMPT


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["0.6b", "8b"])
def test_simulated_device_has_the_rate_of_a_plan(shape: Any) -> None:
    run = SimulatedDevice(shape, H200, keep_prompt).run(group_of(1))
    load = Load(1, PROMPT, RESPONSE, GROUP)
    assert run.num_computed_tokens == load.group_tokens
    assert run.num_cached_tokens == 0
    rate = estimate_rate(shape, H200, load).tokens_per_s
    assert run.seconds == pytest.approx(load.group_tokens / rate)


def test_simulated_device_takes_the_given_share_of_the_matrix_rate() -> None:
    slow, fast = (
        SimulatedDevice(SMALL, H200, keep_prompt, efficiency).run(group_of(1)).seconds
        for efficiency in (0.2, 0.8)
    )
    assert slow == pytest.approx(4 * fast)


def test_simulated_device_computes_a_prompt_once() -> None:
    device = SimulatedDevice(SMALL, H200, keep_prompt)
    first, again = device.run(group_of(1)), device.run(group_of(1, first_response=GROUP))
    assert again.num_cached_tokens == PROMPT
    assert again.num_computed_tokens == GROUP * RESPONSE
    prompt_alone = SimulatedDevice(SMALL, H200, keep_prompt).run([(1,) * PROMPT])
    assert first.seconds - again.seconds == pytest.approx(prompt_alone.seconds)


def test_simulated_device_forgets_what_its_cache_has_no_room_for() -> None:
    device = SimulatedDevice(SMALL, H200, keep_prompt, cache_tokens=PROMPT)
    device.run(group_of(1))
    device.run(group_of(2))
    assert device.run(group_of(1)).num_cached_tokens == 0
    without = SimulatedDevice(SMALL, H200, keep_prompt, cache_tokens=0)
    assert [without.run(group_of(1)).num_cached_tokens for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["0.6b", "8b"])
def test_simulated_cache_is_as_large_as_the_engine_would_make_it(
    shape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = estimate_memory(shape, H200, torch.bfloat16)
    free = memory.device_bytes - memory.weights_bytes - RUNTIME_BYTES
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, 0))
    size = choose_prefix_cache_size(
        None, shape, torch.bfloat16, [torch.device("cuda")], memory.max_batch_tokens
    )
    assert SimulatedDevice(shape, H200, keep_prompt).cache_tokens == size.num_tokens


def test_simulated_batches_run_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def record_wait(seconds: float) -> None:
        waits.append(seconds)

    async def run_two() -> SimulatedBackend:
        backend = SimulatedBackend(
            ModelSettings(name="demo"), lambda _: SimulatedDevice(SMALL, H200, keep_prompt)
        )
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 5.0)
        monkeypatch.setattr("simulated.asyncio.sleep", record_wait)
        results = [await backend.run_batch(group_of(prompt), 0) for prompt in (1, 2)]
        assert waits == pytest.approx([results[0].inference_s, 2 * results[0].inference_s])
        return backend

    usage = asyncio.run(run_two()).usage
    assert (usage.batches, usage.conversations) == (2, 2 * GROUP)
    assert usage.tokens == 2 * GROUP * (PROMPT + RESPONSE)
    assert usage.computed_tokens == 2 * (PROMPT + GROUP * RESPONSE)
    assert usage.busy_s == pytest.approx(waits[-1])


def measured_of(**chosen: float) -> Any:
    fields: dict[str, Any] = {
        "posts": 10,
        "conversations": 20,
        "tokens": 9_000,
        "computed_tokens": 7_000,
        "seconds": 2.0,
        "cpu_s": 0.4,
        "starved_s": 0.0,
        "busy_s": 0.5,
        "client_cpu_s": 0.1,
        "stages": {},
    }
    return Measured(**{**fields, **chosen})


def test_constants_of_a_gateway_explain_every_kind_of_posts() -> None:
    counts = [(100, 100, 100_000), (50, 100, 45_000), (10, 160, 70_000), (1, 256, 120_000)]
    found = {
        str(posts): measured_of(
            posts=posts,
            conversations=conversations,
            tokens=tokens,
            cpu_s=1.5e-3 * posts + 0.2e-3 * conversations + 1e-6 * tokens,
        )
        for posts, conversations, tokens in counts
    }
    constants = fit_constants(found)
    assert constants == pytest.approx({"a request": 1.5, "a conversation": 0.2, "a token": 1e-3})


def test_no_constant_of_a_gateway_is_negative() -> None:
    counts = [(100, 100, 100_000), (50, 100, 45_000), (10, 160, 70_000)]
    found = {
        str(posts): measured_of(
            posts=posts, conversations=number, tokens=tokens, cpu_s=1e-6 * tokens - 1e-5 * number
        )
        for posts, number, tokens in counts
    }
    constants = fit_constants(found)
    assert constants["a conversation"] == 0
    assert constants["a token"] == pytest.approx(1e-3, rel=0.05)
    found.popitem()
    assert fit_constants(found) == {}


def test_limit_is_what_is_busy() -> None:
    assert find_limit(measured_of(busy_s=1.9, cpu_s=1.9)) == "the device"
    assert find_limit(measured_of(cpu_s=1.9)).startswith("the gateway")
    assert find_limit(measured_of(client_cpu_s=1.9)).startswith("the clients")
    assert find_limit(measured_of(starved_s=1.0)).startswith("the cores")
    assert find_limit(measured_of()) == "the number of clients"
    measured = measured_of()
    assert (measured.cpu_ms, measured.cores, measured.busy_share) == (20.0, 0.2, 0.25)


def frame_in(*files: str) -> FrameType:
    """The frame of a function in the last file, called from one in the file before it."""
    call: Callable[[], FrameType] = sys._getframe
    for file in reversed(files):
        code = compile("def function():\n    return call()", file, "exec")
        namespace: dict[str, Any] = {"call": call}
        exec(code, namespace)
        call = namespace["function"]
    return call()


def test_stage_is_that_of_the_innermost_function() -> None:
    route, encoder = "/x/serve/api/routes/scoring.py", "/x/rm_core/inputs/encoder.py"
    assert find_stage(frame_in(route, "/lib/json/encoder.py")) == "answer"
    assert find_stage(frame_in(route, encoder)) == "tokenize"
    assert find_stage(frame_in(encoder, "/x/rm_core/inputs/chat_template.py")) == "render"
    assert find_stage(frame_in("/x/serve/scheduler/a.py", "/x/rm_core/packing.py")) == "schedule"
    last_turn = "/x/rm_core/inputs/last_turn.py"
    assert find_stage(frame_in("/x/serve/scheduler/dispatcher.py", last_turn)) == "schedule"
    assert find_stage(frame_in("/x/tests/bench/simulated.py", last_turn)) == "simulated device"
    assert find_stage(None) == "other"
