"""TRL's trainers on a tiny random policy, with rewards of a real service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import queue
import statistics
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SPECS, build_tokenizer
from peer_service import Served
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from waiting import PATIENCE_S

from serve.client import AsyncScoringClient, ScoringClient, ScoringFailedError
from serve.client.integrations.trl import AsyncTRLReward, TRLReward, build_reward_funcs

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of TRL and torch about each other
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

QUESTIONS = ["What is the capital of France?", "2+2?"]
DATA: dict[str, list[dict[str, Any]]] = {
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


def train(
    algorithm: str, function: Any, rows: list[dict[str, Any]], folder: Path, **chosen: Any
) -> Any:
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
    } | chosen
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


class _Policy(BaseHTTPRequestHandler):
    """vLLM's completions, of two tokens each."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"token_ids": self.server.token_ids, "logprobs": {"token_logprobs": [-0.5] * 3}}  # type: ignore[attr-defined]
        sent = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_async_grpo_scores_in_spawned_process(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL pickles the reward functions to the process that generates and scores."""
    module = pytest.importorskip("trl.experimental.async_grpo.async_rollout_worker")
    accelerate = pytest.importorskip("accelerate")
    accelerate.PartialState(cpu=True)  # as the trainer does before it starts the process
    monkeypatch.setattr(module, "is_vllm_available", lambda: True)
    tokenizer = build_tokenizer(SPECS["qwen3"])
    # TRL parses answers only where it knows the policy's template.
    templates = Path(trl.__path__[0], "chat_templates")
    tokenizer.chat_template = (templates / "qwen3.jinja").read_text()
    policy = ThreadingHTTPServer(("127.0.0.1", 0), _Policy)
    policy.token_ids = tokenizer("42<|im_end|>", add_special_tokens=False)["input_ids"]  # type: ignore[attr-defined]
    threading.Thread(target=policy.serve_forever, daemon=True).start()
    with ScoringClient(served.url, "demo") as client:
        expected = client.score(
            [
                [*row["prompt"], {"role": "assistant", "content": "42"}]
                for row in DATA["conversational"]
            ]
        )  # its connections stay open while it is pickled
        worker = module.AsyncRolloutWorker(
            model_name="policy",
            dataset=datasets.Dataset.from_list(DATA["conversational"]),
            reward_funcs=[
                TRLReward(client, name="first"),
                AsyncTRLReward(AsyncScoringClient(served.url, "demo"), name="second"),
            ],
            processing_class=tokenizer,
            eos_token_ids=[tokenizer.eos_token_id],
            num_generations=2,
            max_inflight_tasks=2,
            vllm_server_url=f"http://127.0.0.1:{policy.server_port}",
        )
        worker.start()
        try:
            samples = []
            while len(samples) < 4:
                worker.check_health(PATIENCE_S)
                with contextlib.suppress(queue.Empty):
                    samples.append(worker.rollout_buffer.get(timeout=1))
        finally:
            worker.stop()
            policy.shutdown()
            policy.server_close()
    for name in ("first", "second"):
        rewards = [sample.metrics[f"rewards/{name}"] for sample in samples]
        assert rewards == [reward for reward in expected for _ in range(2)]


@pytest.mark.parametrize("aggregation", ["normalize_then_sum", "sum_then_normalize"])
def test_components_of_two_models_are_kept_apart(
    served: Served, aggregation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each model has its column in TRL, and one request a step scores for both."""
    with ScoringClient(served.url) as client:
        calls = []
        score_models = client.score_models

        def count(*args: Any, **options: Any) -> Any:
            calls.append(args)
            return score_models(*args, **options)

        monkeypatch.setattr(client, "score_models", count)
        functions = [RecordingReward(f) for f in build_reward_funcs(client, ["demo", "llama"])]
        trainer = train(
            "GRPO",
            functions,
            DATA["conversational"],
            tmp_path,
            multi_objective_aggregation=aggregation,
            reward_weights=[1.0, 0.5],
        )
        assert len(calls) == 2
    for function in functions:
        model = function.__name__
        logs = [log for log in trainer.state.log_history if f"rewards/{model}/mean" in log]
        with ScoringClient(served.url, model) as client:
            for (prompts, completions, rewards), log in zip(function.calls, logs, strict=True):
                assert rewards == client.score(join_conversations(prompts, completions))
                mean = log[f"rewards/{model}/mean"]
                assert mean == pytest.approx(statistics.fmean(rewards), abs=1e-4)


class SpoilingReward(RecordingReward):
    """A reward function whose second completion in each batch cannot be scored."""

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        completions = [completions[0], [{"role": "user", "content": "?"}], *completions[2:]]
        return super().__call__(prompts, completions, **columns)


@pytest.mark.parametrize("on_error", ["none", "group", -3.0])
def test_failures_are_left_out_as_chosen(
    served: Served, on_error: str | float, tmp_path: Path
) -> None:
    with ScoringClient(served.url, "demo") as client:
        function = SpoilingReward(TRLReward(client, on_error=on_error))
        trainer = train("GRPO", function, DATA["conversational"], tmp_path, max_steps=1)
    ((_, _, rewards),) = function.calls
    advantages = list(trainer._logs["advantages"])
    if on_error == "group":
        assert rewards == [None] * 4
        assert advantages == [0.0] * 4
        return
    assert rewards[1] == (None if on_error == "none" else -3.0)
    counted = [reward for reward in rewards if reward is not None]
    mean, deviation = statistics.fmean(counted), statistics.stdev(counted)
    for reward, advantage in zip(rewards, advantages, strict=True):
        expected = 0.0 if reward is None else (reward - mean) / (deviation + 1e-4)
        assert advantage == pytest.approx(expected, abs=1e-3)
        assert math.isfinite(advantage)
