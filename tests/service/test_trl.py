"""TRL's trainers on a tiny random policy, with rewards of a real service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SPECS, build_tokenizer
from peer_service import Served
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from waiting import PATIENCE_S

from serve.client import AsyncScoringClient, ScoringClient, ScoringFailedError
from serve.client.integrations.trl import AsyncTRLReward, TRLReward

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of TRL and torch about each other
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

QUESTIONS = ["What is the capital of France?", "2+2?"]
DATA = {
    "text": [{"prompt": question, "solution": "x"} for question in QUESTIONS],
    "conversational": [
        {"prompt": [{"role": "user", "content": question}], "solution": "x"}
        for question in QUESTIONS
    ],
}


class RecordingReward:
    """A reward function that records its arguments and rewards."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.calls: list[tuple[list[Any], list[Any], list[float]]] = []
        self.__name__ = function.__name__

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        assert set(columns["solution"]) == {"x"}
        rewards: list[float] = self.function(prompts=prompts, completions=completions, **columns)
        self.calls.append((prompts, completions, rewards))
        return rewards


class AsyncRecordingReward(RecordingReward):
    async def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> Any:
        rewards = await self.function(prompts=prompts, completions=completions, **columns)
        self.calls.append((prompts, completions, rewards))
        return rewards


def write_policy(folder: Path) -> PreTrainedTokenizerFast:
    """Write a policy to a folder, since trainers load it again as the reference model."""
    tokenizer = build_tokenizer(SPECS["qwen3"])
    tokenizer.padding_side = "left"
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return tokenizer


def train(algorithm: str, function: Any, rows: list[dict[str, Any]], folder: Path) -> Any:
    options = {
        "output_dir": str(folder),
        "max_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    tokenizer = write_policy(folder / "policy")
    trainer = getattr(trl, f"{algorithm}Trainer")(
        model=str(folder / "policy"),
        reward_funcs=function,
        args=getattr(trl, f"{algorithm}Config")(**options),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def join_conversations(prompts: list[Any], completions: list[Any]) -> list[Any]:
    if isinstance(prompts[0], str):
        return [
            [{"role": "user", "content": p}, {"role": "assistant", "content": c}]
            for p, c in zip(prompts, completions, strict=True)
        ]
    return [p + c for p, c in zip(prompts, completions, strict=True)]


@pytest.mark.parametrize(
    ("algorithm", "rows"),
    [
        ("GRPO", "conversational"),
        ("RLOO", "text"),
        pytest.param("GRPO", "text", marks=pytest.mark.slow),
        pytest.param("RLOO", "conversational", marks=pytest.mark.slow),
    ],
)
def test_trainer_steps_use_rewards_of_service(
    served: Served, algorithm: str, rows: str, tmp_path: Path
) -> None:
    with ScoringClient(served.url, "demo") as client:
        function = RecordingReward(TRLReward(client))
        trainer = train(algorithm, function, DATA[rows], tmp_path)
        assert len(function.calls) == 2
        logs = [log for log in trainer.state.log_history if "rewards/skyreward/mean" in log]
        for (prompts, completions, rewards), log in zip(function.calls, logs, strict=True):
            assert len(rewards) == 4
            assert rewards == client.score(join_conversations(prompts, completions))
            assert log["rewards/skyreward/mean"] == pytest.approx(sum(rewards) / 4, abs=1e-4)


@pytest.mark.slow
def test_trainer_steps_use_asynchronous_rewards(served: Served, tmp_path: Path) -> None:
    client = AsyncScoringClient(served.url, "demo")
    function = AsyncRecordingReward(AsyncTRLReward(client, name="remote"))
    trainer = train("GRPO", function, DATA["conversational"], tmp_path)
    asyncio.run_coroutine_threadsafe(client.close(), trainer.async_loop).result(PATIENCE_S)
    assert len(function.calls) == 2
    with ScoringClient(served.url, "demo") as blocking:
        for prompts, completions, rewards in function.calls:
            assert rewards == blocking.score(join_conversations(prompts, completions))
    assert any("rewards/remote/mean" in log for log in trainer.state.log_history)


@pytest.mark.slow
def test_unscorable_conversation_ends_training(served: Served, tmp_path: Path) -> None:
    rows = [{"prompt": "<|im_start|>user\n2+2?", "solution": "x"}] * 2
    with (
        ScoringClient(served.url, "demo") as client,
        pytest.raises(ScoringFailedError, match="4 of 4 conv"),
    ):
        train("GRPO", TRLReward(client), rows, tmp_path)
