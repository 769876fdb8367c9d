"""Rewards of a step model and a judge through the code of trainers."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray  # verl imports it; import it before stub modules are installed
from fastapi.testclient import TestClient
from peers import VERL, peer_module
from stub_service import StubService

import serve.client.integrations.openrlhf
from serve.client import ScoringClient, ScoringFailedError, ServiceError
from serve.client.integrations import base
from serve.client.integrations.ms_swift import SkyRewardORM
from serve.client.integrations.slime import custom_rm
from serve.client.integrations.trl import TRLJudgeReward, TRLReward

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecation warnings of the trainers' code
assert ray

PROBLEM = "Jane has 12 apples and gives 4 to Mark. How many are left?"
SOLUTIONS = ["12 - 4 = 8\nSo Jane has 8.", "12 - 4 = 7\n7\n7.", "8"]
PROMPT = f"<|im_start|>user\n{PROBLEM}<|im_end|>\n<|im_start|>assistant\n"
QUERIES = [f"{PROMPT}{solution}<|im_end|>" for solution in SOLUTIONS]


@pytest.fixture
def expected(app: TestClient) -> list[list[float]]:
    """The step rewards of each solution."""
    items = [{"prompt": PROBLEM, "response": solution} for solution in SOLUTIONS]
    results = app.post("/v1/steps", json={"model": "prm", "items": items}).json()["results"]
    return [result["step_rewards"] for result in results]


@pytest.fixture
def chosen(service: StubService, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The settings of the reward functions: the smallest reward of a step."""
    monkeypatch.setenv("SKYREWARD_CLIENT_URLS", service.url)
    monkeypatch.setenv("SKYREWARD_CLIENT_MODEL", "prm")
    monkeypatch.setenv("SKYREWARD_CLIENT_AGGREGATION", "min")
    monkeypatch.setenv("SKYREWARD_CLIENT_POLICY_TEMPLATE", "chatml")
    base._build_reward_client.cache_clear()
    yield
    base.get_reward_client().client.close()
    base._build_reward_client.cache_clear()


def compute_trl_rewards(
    functions: list[Any], questions: list[str], answers: list[str], extra: dict[str, list[Any]]
) -> Any:
    """Rewards by the code of `GRPOTrainer`, `[answers, functions]`; `extra` gets what is logged."""
    trl = pytest.importorskip("trl")
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=False),
        state=SimpleNamespace(global_step=0),
        environments=None,
        reward_funcs=functions,
        reward_processing_classes=[None] * len(functions),
        reward_func_names=[function.__name__ for function in functions],
        args=SimpleNamespace(report_to=[]),
        _log_completion_extra=lambda column, values: extra[column].extend(values),
        _log_metric=None,
    )
    return trl.GRPOTrainer._calculate_rewards(
        trainer,
        [{"prompt": question} for question in questions],
        [[{"role": "user", "content": question}] for question in questions],
        [[{"role": "assistant", "content": answer}] for answer in answers],
        [[0]] * len(answers),
    )


def test_trl_gets_the_aggregate_and_logs_the_steps(
    service: StubService, expected: list[list[float]]
) -> None:
    extra: dict[str, list[Any]] = defaultdict(list)
    with ScoringClient(service.url, "prm") as client:
        functions = [TRLReward(client, aggregation="min"), TRLReward(client)]
        rewards = compute_trl_rewards(functions, [PROBLEM] * 3, SOLUTIONS, extra)
    assert rewards[:, 0].tolist() == pytest.approx([min(steps) for steps in expected])
    assert rewards[:, 1].tolist() == pytest.approx([steps[-1] for steps in expected])
    assert extra == {"skyreward_steps": expected * 2}


def test_trl_judge_compares_the_answers_of_each_prompt(
    service: StubService, app: TestClient
) -> None:
    questions = [PROBLEM, "2+2?", PROBLEM, PROBLEM, "2+2?"]
    answers = ["8", "4", "It is 8.", "far " * 2000, "5"]
    extra: dict[str, list[Any]] = {}
    expected = [-100.0] * 5
    for question in (PROBLEM, "2+2?"):
        indices = [i for i in range(5) if questions[i] == question and i != 3]
        responses = [answers[i] for i in indices]
        body = {"model": "judge", "prompt": question, "responses": responses}
        for i, result in zip(
            indices, app.post("/v1/rank", json=body).json()["results"], strict=True
        ):
            expected[i] = result["reward"]
    with ScoringClient(service.url, "judge") as client:
        function = pickle.loads(pickle.dumps(TRLJudgeReward(client, failed_reward=-100.0)))
        rewards = compute_trl_rewards([function], questions, answers, extra)
        function.client.close()
        assert rewards[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
        with pytest.raises(ScoringFailedError, match=r"1 of 5 .* conversation 3: conversation_too"):
            compute_trl_rewards([TRLJudgeReward(client)], questions, answers, extra)
        with pytest.raises(ServiceError, match="a judge compares at least 2"):
            compute_trl_rewards([TRLJudgeReward(client)], questions[:2], answers[:2], extra)


@pytest.mark.parametrize("aggregation", ["last", "min"])
def test_openrlhf_over_http(
    service: StubService, expected: list[list[float]], aggregation: str
) -> None:
    with peer_module("openrlhf.utils.agent", {}) as agent:
        url = f"{service.url}/get_reward?model=prm&aggregation={aggregation}"
        executor = agent.SingleTurnAgentExecutor([url])
        arguments = (QUERIES, [PROMPT] * 3, [""] * 3)
        (answer,) = asyncio.run(executor._fetch_rewards_via_http(*arguments))
    aggregate = min if aggregation == "min" else (lambda steps: steps[-1])
    assert answer["rewards"] == [aggregate(steps) for steps in expected]
    assert answer["scores"] == answer["extra_logs"]["dummy_scores"] == answer["rewards"]


def test_openrlhf_with_reward_func_file(chosen: None, expected: list[list[float]]) -> None:
    with peer_module("openrlhf.utils.agent", {}) as agent:
        executor = agent.SingleTurnAgentExecutor([serve.client.integrations.openrlhf.__file__])
        arguments = (QUERIES, [PROMPT] * 3, [""] * 3)
        answers = asyncio.run(executor._fetch_rewards_via_func(*arguments))
    assert [answer["rewards"] for answer in answers] == [[min(steps)] for steps in expected]


def test_verl_loads_and_awaits_the_function(
    chosen: None, service: StubService, expected: list[list[float]]
) -> None:
    settings = {
        "path": "pkg://serve.client.integrations.verl",
        "name": "compute_score",
        "reward_kwargs": {"aggregation": "product", "policy_template": "none"},
    }
    config = SimpleNamespace(reward={"custom_reward_function": settings})
    with peer_module("verl.trainer.ppo.reward", VERL) as module:
        function = module.get_custom_reward_fn(config)

    async def run() -> list[float]:
        info = {"question": PROBLEM}
        rewards = [await function("math", solution, "8", info) for solution in SOLUTIONS]
        client = base.get_reward_client(aggregation="product", policy_template="none")
        await client.async_client.close()
        return rewards

    products = [1.0, 1.0, 1.0]
    for index, steps in enumerate(expected):
        for reward in steps:
            products[index] *= reward
    assert asyncio.run(run()) == pytest.approx(products)


def test_slime_with_our_function_and_over_http(
    chosen: None, service: StubService, app: TestClient, expected: list[list[float]]
) -> None:
    samples = [SimpleNamespace(prompt=PROMPT, response=f"{s}<|im_end|>") for s in SOLUTIONS]

    async def run() -> Any:
        rewards = await custom_rm(None, samples)
        await base.get_reward_client().async_client.close()
        return rewards

    assert asyncio.run(run()) == [min(steps) for steps in expected]
    body = {"prompt": PROMPT, "response": SOLUTIONS[0], "label": "8"}
    answer = app.post("/remote_rm", params={"model": "prm", "aggregation": "min"}, json=body)
    assert answer.json() == min(expected[0])


def test_ms_swift_reward_function(chosen: None, expected: list[list[float]]) -> None:
    class Rows:
        @staticmethod
        def rows_to_batched(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
            return {key: [row[key] for row in rows] for key in rows[0]}

    stand_ins = {
        "swift.utils": {"get_logger": logging.getLogger},
        "swift.rl_core.data": {"GRPOSample": object},
        "swift.dataset": {"RowPreprocessor": Rows},
    }
    rows = [
        [{"role": "user", "content": PROBLEM}, {"role": "assistant", "content": solution}]
        for solution in SOLUTIONS
    ]
    samples = [
        SimpleNamespace(messages=row, to_reward_row=lambda row=row: {"messages": row})
        for row in rows
    ]
    with peer_module("swift.rl_core.grpo_algorithm", stand_ins) as module:
        rewards = module.compute_rewards_per_func(samples, [SkyRewardORM()], [None], "cpu")
    assert rewards[:, 0].tolist() == pytest.approx([min(steps) for steps in expected])


def test_rendered_text_of_a_step_model_needs_the_template(app: TestClient) -> None:
    answer = app.post("/get_reward", params={"model": "prm"}, json={"query": QUERIES})
    assert answer.status_code == 400
    assert "`policy_template`" in answer.json()["error"]["message"]
