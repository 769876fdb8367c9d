"""Trainers' own code against a real service, by HTTP and by our reward functions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import ray  # imported by verl; here, where no stand-ins are about
import torch
from peer_service import ANSWERS, QUESTION, Served, conversation
from peers import peer_module
from transformers import PreTrainedTokenizerBase

import serve.client.integrations.openrlhf
from serve.client.integrations import base
from serve.client.integrations.ms_swift import SkyRewardORM

# What their code warns of is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
assert ray


def test_openrlhf_by_http(served: Served) -> None:
    """The whole of a rollout's end: tokens decoded, posted, and read into the sample."""
    for model in ("demo", "llama"):
        with openrlhf() as agent:
            executor = agent.SingleTurnAgentExecutor([f"{served.url}/get_reward?model={model}"])
            found = [asyncio.run(rollout(executor, served, model, answer)) for answer in ANSWERS]
        assert [sample["reward"] for sample in found] == [[r] for r in served.native(model)]
        assert found[0]["scores"] == found[0]["extra_logs"]["dummy_scores"] == found[0]["reward"]


def test_openrlhf_by_a_file(served: Served, chosen: pytest.MonkeyPatch) -> None:
    """A policy of another family than the reward model."""
    chosen.setenv("SKYREWARD_CLIENT_POLICY_TEMPLATE", "chatml")
    with openrlhf() as agent:
        executor = agent.SingleTurnAgentExecutor([serve.client.integrations.openrlhf.__file__])
        found = [asyncio.run(rollout(executor, served, "demo", answer)) for answer in ANSWERS]
    assert [sample["reward"] for sample in found] == [[r] for r in served.native("llama")]


def openrlhf() -> contextlib.AbstractContextManager[Any]:
    return peer_module("openrlhf.utils.agent", {})


async def rollout(executor: Any, served: Served, policy: str, answer: str) -> dict[str, Any]:
    tokenizer = served.tokenizer(policy)
    ids = tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    output = SimpleNamespace(token_ids=ids, text=answer, finish_reason="stop", logprobs=None)

    class Engine:
        async def generate(self, *_: Any, **__: Any) -> Any:
            return SimpleNamespace(outputs=[output])

    sampling = SimpleNamespace(max_tokens=256, logprobs=None)
    arguments = (served.prompt(policy), "8", sampling, 4096, tokenizer, Engine())
    found: dict[str, Any] = await executor.execute(*arguments)
    return found


VERL: dict[str, dict[str, Any]] = {
    "omegaconf": {"DictConfig": dict, "open_dict": None},
    "tensordict": {"TensorDict": object},
    "verl": {"DataProto": object},
    "verl.protocol": {"DataProto": object, "pad_dataproto_to_divisor": None},
    "verl.single_controller.ray.base": {"RayResourcePool": object},
    "verl.utils": {"hf_tokenizer": None},
    "verl.utils.fs": {"copy_to_local": None},
    "verl.utils.ray_utils": {"get_event_loop": asyncio.get_event_loop},
    "verl.utils.reward_score": {"default_compute_score": None, "get_default_compute_score": None},
}


class Rollouts(list[Any]):
    """What `DataProto` is to code that takes items out of it."""

    batch: dict[str, Any]
    non_tensor_batch: dict[str, Any]

    def __getitem__(self, place: Any) -> Any:
        return (
            Rollouts(super().__getitem__(place))
            if isinstance(place, slice)
            else super().__getitem__(place)
        )


def rollout_of(tokenizer: PreTrainedTokenizerBase, answer: str) -> SimpleNamespace:
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
def test_the_reward_loop_of_verl(served: Served, engine: str, model: str) -> None:
    stand_ins = {
        **VERL,
        "verl.trainer.ppo.reward": {
            "load_reward_manager": None,
            "resolve_reward_manager_cls": None,
        },
        "verl.experimental.reward_loop.reward_model": {"RewardModelManager": object},
    }
    # By what the service was told to load, as verl knows it by its path.
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
        samples = Rollouts(rollout_of(served.tokenizer(model), answer) for answer in ANSWERS)
        found = asyncio.run(worker.compute_score_batch(samples))
    assert [sample["reward_score"] for sample in found] == served.native(model)


def test_a_custom_reward_function_of_verl(served: Served, chosen: pytest.MonkeyPatch) -> None:
    """Found by verl's own loader, awaited by its own manager."""
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
            samples = [rollout_of(served.tokenizer("demo"), answer) for answer in ANSWERS]
            found = await asyncio.gather(*(worker.run_single(Rollouts([s])) for s in samples))
            await base.get_reward_client(model="demo").async_client.close()
            return found

        found = asyncio.run(run())
    assert [sample["reward_score"] for sample in found] == served.native("demo")


def test_a_batch_reward_function_of_verl(served: Served, chosen: pytest.MonkeyPatch) -> None:
    from serve.client.integrations.verl import compute_score_batch

    tokenizer = served.tokenizer("llama")
    stand_ins = {**VERL, "verl.workers.reward_manager": {"register": lambda name: lambda cls: cls}}
    items = [rollout_of(tokenizer, answer) for answer in ANSWERS]
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


def slime() -> contextlib.AbstractContextManager[Any]:
    # Rules for mathematics, which need packages of their own.
    other = {
        "get_deepscaler_rule_based_reward": None,
        "extract_answer": None,
        "grade_answer_verl": None,
    }
    stand_ins = {f"slime.rollout.rm_hub.{name}": other for name in ("deepscaler", "math_utils")}
    return peer_module("slime.rollout.rm_hub", stand_ins)


def test_the_remote_reward_model_of_slime(served: Served) -> None:
    """Prompts as messages, and as text that the policy's template wrote."""
    with slime() as module:

        async def run(model: str) -> list[Any]:
            args = SimpleNamespace(
                rm_url=f"{served.url}/remote_rm?model={model}",
                rm_type="remote_rm",
                custom_rm_path=None,
            )
            found = []
            for prompt in (conversation("")[:1], served.prompt(model)):
                samples = [slime_sample(prompt, answer) for answer in ANSWERS]
                found.append(await module.batched_async_rm(args, samples))
            await module._shared_session.close()
            return found

        for model in ("demo", "llama"):
            assert asyncio.run(run(model)) == [served.native(model)] * 2


def test_a_custom_reward_model_of_slime(served: Served, chosen: pytest.MonkeyPatch) -> None:
    chosen.setenv("SKYREWARD_CLIENT_POLICY_TEMPLATE", "chatml")
    args = SimpleNamespace(custom_rm_path="serve.client.integrations.slime.custom_rm")
    with slime() as module:

        async def run() -> tuple[Any, Any]:
            samples = [slime_sample(served.prompt("demo"), answer) for answer in ANSWERS]
            found = (
                await module.async_rm(args, samples[0]),
                await module.batched_async_rm(args, samples),
            )
            await base.get_reward_client().async_client.close()
            return found

        assert asyncio.run(run()) == (served.native("llama")[0], served.native("llama"))


def slime_sample(prompt: Any, answer: str) -> SimpleNamespace:
    return SimpleNamespace(
        prompt=prompt, response=answer, label="8", metadata=None, custom_rm_path=None
    )


def test_a_reward_function_of_ms_swift(served: Served, chosen: pytest.MonkeyPatch) -> None:
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
        found = module.compute_rewards_per_func(samples, [SkyRewardORM()], [None], "cpu")
    assert torch.equal(found[:, 0], torch.tensor(served.native("llama")))
