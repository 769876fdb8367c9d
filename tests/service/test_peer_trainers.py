"""Code of trainers against a real service, over HTTP and with the reward functions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import ray  # verl imports it; import it before stub modules are installed
import torch
from peer_service import ANSWERS, QUESTION, Served, conversation
from peers import VERL, peer_module
from transformers import PreTrainedTokenizerBase

import serve.client.integrations.openrlhf
from serve.client.integrations import base
from serve.client.integrations.ms_swift import SkyRewardORM

# Ignore deprecation warnings of the trainers' code.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
assert ray


def test_openrlhf_over_http(served: Served) -> None:
    """The end of a rollout: tokens are decoded, scored, and the reward is put into the sample."""
    for model in ("demo", "llama"):
        with load_openrlhf() as agent:
            executor = agent.SingleTurnAgentExecutor([f"{served.url}/get_reward?model={model}"])
            samples = [
                asyncio.run(run_rollout(executor, served, model, answer)) for answer in ANSWERS
            ]
        assert [sample["reward"] for sample in samples] == [[r] for r in served.native(model)]
        first = samples[0]
        assert first["scores"] == first["extra_logs"]["dummy_scores"] == first["reward"]


def test_openrlhf_with_reward_func_file(served: Served, chosen: pytest.MonkeyPatch) -> None:
    """The policy and the reward model are of different families."""
    chosen.setenv("SKYREWARD_CLIENT_POLICY_TEMPLATE", "chatml")
    with load_openrlhf() as agent:
        executor = agent.SingleTurnAgentExecutor([serve.client.integrations.openrlhf.__file__])
        samples = [asyncio.run(run_rollout(executor, served, "demo", answer)) for answer in ANSWERS]
    assert [sample["reward"] for sample in samples] == [[r] for r in served.native("llama")]


def load_openrlhf() -> contextlib.AbstractContextManager[Any]:
    return peer_module("openrlhf.utils.agent", {})


async def run_rollout(executor: Any, served: Served, policy: str, answer: str) -> dict[str, Any]:
    tokenizer = served.tokenizer(policy)
    ids = tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    output = SimpleNamespace(token_ids=ids, text=answer, finish_reason="stop", logprobs=None)

    class Engine:
        async def generate(self, *_: Any, **__: Any) -> Any:
            return SimpleNamespace(outputs=[output])

    sampling = SimpleNamespace(max_tokens=256, logprobs=None)
    arguments = (served.prompt(policy), "8", sampling, 4096, tokenizer, Engine())
    sample: dict[str, Any] = await executor.execute(*arguments)
    return sample


class Rollouts(list[Any]):
    """A stand-in for `DataProto`, for code that indexes it."""

    batch: dict[str, Any]
    non_tensor_batch: dict[str, Any]

    def __getitem__(self, index: Any) -> Any:
        items = super().__getitem__(index)
        return Rollouts(items) if isinstance(index, slice) else items


def build_rollout(tokenizer: PreTrainedTokenizerBase, answer: str) -> SimpleNamespace:
    ids = tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    return SimpleNamespace(
        batch={"responses": ids, "attention_mask": torch.ones(5 + len(ids), dtype=torch.long)},
        non_tensor_batch={
            "raw_prompt": conversation("")[:1],
            "data_source": "apples",
            "reward_model": {"ground_truth": "8"},
            "extra_info": {"question": QUESTION},
        },
    )


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("model", ["demo", "llama"])
def test_verl_reward_loop(served: Served, engine: str, model: str) -> None:
    stand_ins = {
        **VERL,
        "verl.trainer.ppo.reward": {
            "load_reward_manager": None,
            "resolve_reward_manager_cls": None,
        },
        "verl.experimental.reward_loop.reward_model": {"RewardModelManager": object},
    }
    # The path that the service was started with, since verl names the model by its path.
    path = "demo" if model == "demo" else str(served.folders[model])
    with peer_module("verl.experimental.reward_loop.reward_loop", stand_ins) as module:
        worker = object.__new__(module.RewardLoopWorker)
        worker.reward_router_address = served.url.removeprefix("http://")
        worker.input_tokenizer = worker.reward_model_tokenizer = served.tokenizer(model)
        rollout = SimpleNamespace(name=engine)
        reward_model = SimpleNamespace(rollout=rollout, model_path=path, enable=True)
        reward = SimpleNamespace(
            reward_model=reward_model, custom_reward_function=SimpleNamespace(path=None)
        )
        worker.config = SimpleNamespace(reward=reward)
        samples = Rollouts(build_rollout(served.tokenizer(model), answer) for answer in ANSWERS)
        scored = asyncio.run(worker.compute_score_batch(samples))
    assert [sample["reward_score"] for sample in scored] == served.native(model)


def test_verl_custom_reward_function(served: Served, chosen: pytest.MonkeyPatch) -> None:
    """verl's loader finds the function, and verl's manager awaits it."""
    settings = {
        "path": "pkg://serve.client.integrations.verl",
        "name": "compute_score",
        "reward_kwargs": {"model": "demo"},
    }
    config = SimpleNamespace(reward={"custom_reward_function": settings})
    manager = "verl.experimental.reward_loop.reward_manager"
    stand_ins = {**VERL, manager: {"register": lambda name: lambda cls: cls}}
    with peer_module("verl.trainer.ppo.reward", VERL) as module:
        function = module.get_custom_reward_fn(config)
    with peer_module(f"{manager}.naive", stand_ins) as module:

        async def run() -> list[Any]:
            worker = module.NaiveRewardManager(config, served.tokenizer("demo"), function)
            samples = [build_rollout(served.tokenizer("demo"), answer) for answer in ANSWERS]
            scored = await asyncio.gather(*(worker.run_single(Rollouts([s])) for s in samples))
            await base.get_reward_client(model="demo").async_client.close()
            return scored

        scored = asyncio.run(run())
    assert [sample["reward_score"] for sample in scored] == served.native("demo")


def test_verl_batch_reward_function(served: Served, chosen: pytest.MonkeyPatch) -> None:
    from serve.client.integrations.verl import compute_score_batch

    tokenizer = served.tokenizer("llama")
    stand_ins = {**VERL, "verl.workers.reward_manager": {"register": lambda name: lambda cls: cls}}
    items = [build_rollout(tokenizer, answer) for answer in ANSWERS]
    responses = torch.nn.utils.rnn.pad_sequence(
        [item.batch["responses"] for item in items], batch_first=True
    )
    lengths = torch.tensor([[len(item.batch["responses"])] for item in items])
    mask = torch.cat([torch.ones(2, 5), torch.arange(responses.shape[1])[None] < lengths], dim=1)

    batch = Rollouts(items)
    batch.batch = {
        "prompts": torch.zeros(2, 5),
        "responses": responses,
        "attention_mask": mask.long(),
    }
    batch.non_tensor_batch = {
        key: [item.non_tensor_batch[key] for item in items] for key in items[0].non_tensor_batch
    }
    with peer_module("verl.workers.reward_manager.batch", stand_ins) as module:
        manager = module.BatchRewardManager(tokenizer, 0, compute_score_batch)
        assert manager.verify(batch) == served.native("llama")


def load_slime() -> contextlib.AbstractContextManager[Any]:
    # Rule-based rewards for mathematics, which need further packages.
    math_rewards = {
        "get_deepscaler_rule_based_reward": None,
        "extract_answer": None,
        "grade_answer_verl": None,
    }
    modules = ("deepscaler", "math_utils")
    stand_ins = {f"slime.rollout.rm_hub.{name}": math_rewards for name in modules}
    return peer_module("slime.rollout.rm_hub", stand_ins)


def test_slime_remote_reward_model(served: Served) -> None:
    """Prompts are messages, or text that the policy's template rendered."""
    with load_slime() as module:

        async def run(model: str) -> list[Any]:
            args = SimpleNamespace(
                rm_url=f"{served.url}/remote_rm?model={model}",
                rm_type="remote_rm",
                custom_rm_path=None,
            )
            rewards = []
            for prompt in (conversation("")[:1], served.prompt(model)):
                samples = [build_slime_sample(prompt, answer) for answer in ANSWERS]
                rewards.append(await module.batched_async_rm(args, samples))
            await module._shared_session.close()
            return rewards

        for model in ("demo", "llama"):
            assert asyncio.run(run(model)) == [served.native(model)] * 2


def test_slime_custom_reward_model(served: Served, chosen: pytest.MonkeyPatch) -> None:
    chosen.setenv("SKYREWARD_CLIENT_POLICY_TEMPLATE", "chatml")
    args = SimpleNamespace(custom_rm_path="serve.client.integrations.slime.custom_rm")
    with load_slime() as module:

        async def run() -> tuple[Any, Any]:
            samples = [build_slime_sample(served.prompt("demo"), answer) for answer in ANSWERS]
            rewards = (
                await module.async_rm(args, samples[0]),
                await module.batched_async_rm(args, samples),
            )
            await base.get_reward_client().async_client.close()
            return rewards

        assert asyncio.run(run()) == (served.native("llama")[0], served.native("llama"))


def build_slime_sample(prompt: Any, answer: str) -> SimpleNamespace:
    return SimpleNamespace(
        prompt=prompt, response=answer, label="8", metadata=None, custom_rm_path=None
    )


def test_ms_swift_reward_function(served: Served, chosen: pytest.MonkeyPatch) -> None:
    class Rows:
        @staticmethod
        def rows_to_batched(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
            return {key: [row[key] for row in rows] for key in rows[0]}

    stand_ins = {
        "swift.utils": {"get_logger": logging.getLogger},
        "swift.rl_core.data": {"GRPOSample": object},
        "swift.dataset": {"RowPreprocessor": Rows},
    }
    samples = [
        SimpleNamespace(
            messages=conversation(answer),
            to_reward_row=lambda answer=answer: {"messages": conversation(answer), "solution": "8"},
        )
        for answer in ANSWERS
    ]
    with peer_module("swift.rl_core.grpo_algorithm", stand_ins) as module:
        rewards = module.compute_rewards_per_func(samples, [SkyRewardORM()], [None], "cpu")
    assert torch.equal(rewards[:, 0], torch.tensor(served.native("llama")))
