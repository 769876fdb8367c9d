"""More trainers' own code against a real service, in processes of its own."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peer_service import ANSWERS, QUESTION, Served
from peers import peer_module, run_trainer_script


@pytest.fixture
def environment(served: Served) -> dict[str, str]:
    return {"SKYREWARD_CLIENT_URLS": served.url, "SKYREWARD_CLIENT_MODEL": "llama"}


def test_verifiers_task(served: Served, environment: dict[str, str]) -> None:
    scored = run_trainer_script("verifiers_task", QUESTION, *ANSWERS, **environment)
    assert scored == [{"score": r, "reward": 2 * r} for r in served.native("llama")]


def test_tinker_group_rewards(served: Served, environment: dict[str, str]) -> None:
    folder = str(served.folders["llama"])
    scored = run_trainer_script("tinker_group", folder, QUESTION, *ANSWERS, **environment)
    first, second = served.native("llama")
    assert scored == pytest.approx(
        [math.tanh((a - b) / 2) for a, b in [(first, second), (second, first)]]
    )


def test_roll_worker(served: Served, environment: dict[str, str]) -> None:
    environment["SKYREWARD_CLIENT_POLICY_TEMPLATE"] = "chatml"
    arguments = (str(served.folders["demo"]), served.prompt("demo"), *ANSWERS)
    assert run_trainer_script("roll_worker", *arguments, **environment) == served.native("llama")


def test_nemo_gym_rollouts(served: Served) -> None:
    options = '{"models": {"llama": 0.5, "demo": 2}}'
    answer = run_trainer_script("nemo_gym_agent", served.url, QUESTION, options, *ANSWERS)
    llama, demo = served.native("llama"), served.native("demo")
    assert [r["reward_components"] for r in answer["rollouts"]] == [
        {"llama": a, "demo": b} for a, b in zip(llama, demo, strict=True)
    ]
    rewards = [0.5 * a + 2 * b for a, b in zip(llama, demo, strict=True)]
    assert [r["reward"] for r in answer["rollouts"]] == pytest.approx(rewards, abs=1e-12)
    metrics = answer["metrics"]
    assert metrics["key_metrics"]["mean/reward"] == pytest.approx(sum(rewards) / 2)
    assert metrics["agent_metrics"]["max/reward_demo"] == max(demo)
    (group,) = metrics["group_level_metrics"]
    assert group["_ng_task_index"] == 0


def test_openrlhf_agent(served: Served, chosen: pytest.MonkeyPatch) -> None:
    """The multi-turn executor of OpenRLHF with the file that it loads by its path."""
    chosen.setenv("SKYREWARD_CLIENT_POLICY_TEMPLATE", "chatml")
    tokenizer = served.tokenizer("demo")

    async def roll_out(executor: Any, answer: str) -> Any:
        ids = tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
        output = SimpleNamespace(
            token_ids=ids, text=f"{answer}<|im_end|>", finish_reason="stop", logprobs=None
        )

        class Engine:
            async def generate(self, *_: Any, **__: Any) -> Any:
                return SimpleNamespace(outputs=[output])

        sampling = SimpleNamespace(max_tokens=256, logprobs=None)
        return await executor.execute(
            served.prompt("demo"), "8", sampling, 4096, tokenizer, Engine()
        )

    with peer_module("openrlhf.utils.agent", {}) as module:
        from serve.client.integrations import openrlhf_agent

        executor = openrlhf_agent.AgentExecutor()
        assert isinstance(executor, module.AgentExecutorBase)
        samples = [asyncio.run(roll_out(executor, answer)) for answer in ANSWERS]
    assert [sample["reward"] for sample in samples] == served.native("llama")
    assert [sample["scores"] for sample in samples] == [
        torch.tensor(reward) for reward in served.native("llama")
    ]
