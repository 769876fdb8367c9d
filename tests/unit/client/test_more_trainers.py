"""Reward functions of trainers that have no place for a neural reward model of their own."""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from peers import peer_module
from pydantic import BaseModel
from stub_service import StubService, conversation

from serve.client import AsyncScoringClient, ScoringClient, ScoringFailedError, ServiceError
from serve.client.integrations import areal, base, tinker, verifiers
from serve.client.integrations.trl import AsyncTRLReward, TRLReward

CHATML = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
USER = {"role": "user", "content": "2+2?"}


@pytest.fixture(autouse=True)
def _client_env(stub: StubService, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SKYREWARD_CLIENT_URLS", stub.url)
    monkeypatch.setenv("SKYREWARD_CLIENT_RETRY_S", "0")
    base._build_reward_client.cache_clear()
    yield
    base.get_reward_client().client.close()
    base._build_reward_client.cache_clear()


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def run(call: Any, **settings: Any) -> Any:
    """Await a call, and close the client's connections in its event loop."""

    async def await_it() -> Any:
        try:
            return await call
        finally:
            await base.get_reward_client(**settings).async_client.close()

    return asyncio.run(await_it())


# AReaL


def test_areal_reward_fn_uses_messages_of_row(stub: StubService) -> None:
    tools = [{"type": "function", "function": {"name": "tide"}}]
    row = {"messages": [USER], "answer": "4", "tools": tools}
    assert areal.reward_fn(CHATML, "4<|im_end|>", [1], [2], **row) == 4
    assert stub.bodies[0]["conversations"] == [{"messages": [USER, answer("4")], "tools": tools}]


def test_areal_reward_fn_parses_policy_template(
    stub: StubService, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ScoringFailedError, match="foreign_template"):
        areal.reward_fn(CHATML, "4<|im_end|>")
    monkeypatch.setenv("SKYREWARD_CLIENT_POLICY_TEMPLATE", "chatml")
    assert areal.reward_fn(CHATML, "4<|im_end|>", [1], [2], answer="4") == 4
    assert stub.bodies[-1]["conversations"] == [[USER, answer("4")]]


def test_areal_wrapper_runs_reward_fn_in_processes(stub: StubService) -> None:
    """AReaL's own wrapper; its processes get the function by pickle."""
    stand_ins = {"areal.utils": {"logging": __import__("logging")}}
    with peer_module("areal.api.reward_api", stand_ins) as module:
        # AReaL forks; a forked child of the test's threads could wait for a lock forever.
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        module.AsyncRewardWrapper._executors = {1: pool}
        wrapper = module.AsyncRewardWrapper(areal.reward_fn, timeout_seconds=300, max_workers=1)

        async def use() -> list[float]:
            calls = [wrapper(CHATML, text, [1], [2], messages=[USER]) for text in "45"]
            return list(await asyncio.gather(*calls))

        try:
            assert asyncio.run(use()) == [4, 5]
            with pytest.raises(ScoringFailedError, match="1 of 1 conversations"):
                asyncio.run(wrapper(CHATML, "x", [1], [2], messages=[USER]))
        finally:
            pool.shutdown()
            module.AsyncRewardWrapper._executors.clear()


# Tinker cookbook


def compare(first: Any, second: Any, prompt: Any = None) -> SimpleNamespace:
    return SimpleNamespace(
        prompt_conversation=prompt or [USER], completion_A=first, completion_B=second
    )


def test_tinker_preference_is_expected_outcome(stub: StubService) -> None:
    model = tinker.SkyRewardPreferenceModelBuilder({"truncation": "left"})()
    score = run(model(compare([answer("1")], [answer("3")])), truncation="left")
    assert score == pytest.approx(2 / (1 + math.exp(-2)) - 1, abs=1e-12)
    assert stub.bodies[0]["truncation"] == "left"
    swapped = run(model(compare([answer("3")], [answer("1")])), truncation="left")
    assert swapped == -score
    with pytest.raises(ServiceError, match="bad settings of the client: retry_s"):
        tinker.SkyRewardPreferenceModel(retry_s=-1)


class Function(BaseModel):
    name: str
    arguments: str


class Call(BaseModel):
    function: Function
    type: str = "function"
    id: str | None = None


def test_tinker_messages_are_sent_as_openai_writes_them(stub: StubService) -> None:
    thinking = {"type": "thinking", "thinking": "secret"}
    called = {
        "role": "assistant",
        "content": [thinking, {"type": "text", "text": ""}],
        "tool_calls": [Call(function=Function(name="tide", arguments='{"port": "Brest"}'))],
    }
    result = {"role": "tool", "content": "06:00", "tool_call_id": "c"}
    completion = [called, result, {**answer("6"), "trainable": True}]
    run(tinker.SkyRewardPreferenceModel()(compare(completion, [answer("1")])))
    function = {"name": "tide", "arguments": {"port": "Brest"}}
    assert stub.bodies[0]["conversations"][0] == [
        USER,
        {
            "role": "assistant",
            "content": [{"type": "text", "text": ""}],
            "tool_calls": [{"function": function, "type": "function"}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "06:00"},
        answer("6"),
    ]
    called["tool_calls"][0].function.arguments = "{"  # type: ignore[attr-defined]
    with pytest.raises(ScoringFailedError, match="invalid_conversation"):
        run(tinker.SkyRewardPreferenceModel()(compare(completion, [answer("1")])))


# verifiers


class ToolCall(BaseModel):
    id: str
    type: str = "function"
    name: str
    arguments: str


class Message(BaseModel):
    role: str
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Tool(BaseModel):
    type: str = "function"
    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


def trace(*messages: Message, tools: list[Tool] | None = None) -> SimpleNamespace:
    branch = SimpleNamespace(messages=list(messages), tools=tools or [])
    return SimpleNamespace(branches=[SimpleNamespace(messages=[], tools=[]), branch])


def test_verifiers_reward_reads_last_branch(stub: StubService) -> None:
    call = ToolCall(id="c", name="tide", arguments='{"port": "Brest"}')
    rollout = trace(
        Message(role="user", content="Tide?"),
        Message(role="assistant", reasoning_content="secret", tool_calls=[call]),
        Message(role="tool", tool_call_id="c", content="06:00"),
        Message(role="assistant", content="6"),
        tools=[Tool(name="tide", description="When?", parameters={"type": "object"})],
    )
    assert run(verifiers.reward(rollout)) == 6
    (sent,) = stub.bodies[0]["conversations"]
    function = {"name": "tide", "arguments": {"port": "Brest"}}
    assert sent["messages"][1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }
    assert sent["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "tide", "description": "When?", "parameters": {"type": "object"}
            },
        }
    ]  # fmt: skip
    assert "secret" not in json.dumps(stub.bodies)


def test_verifiers_reward_names_what_cannot_be_scored(stub: StubService) -> None:
    call = ToolCall(id="c", name="tide", arguments="[1]")
    broken = trace(Message(role="user", content="a"), Message(role="assistant", tool_calls=[call]))
    with pytest.raises(ScoringFailedError, match="JSON text of a list"):
        run(verifiers.reward(broken))
    stub.refusals = [(503, {})] * 10
    with pytest.raises(ServiceError):
        run(verifiers.reward(trace(Message(role="user", content="a"), Message(**answer("1")))))


# SkyRL


def test_skyrl_environment_scores_its_prompt(stub: StubService) -> None:
    with peer_module("skyrl_gym.envs.registration", {"skyrl_gym": GYM}) as registration:
        from serve.client.integrations.skyrl import SkyRewardEnv

        registration.register(
            id="skyreward", entry_point="serve.client.integrations.skyrl:SkyRewardEnv"
        )
        tools = [{"type": "function", "function": {"name": "tide"}}]
        environment = registration.make(
            "skyreward", env_config={"truncation": "left"}, extras={"tools": tools, "max_turns": 1}
        )
        prompt, metadata = environment.init([USER])
        step = environment.step("4<|im_end|>")
        base.get_reward_client(truncation="left").client.close()
    assert (prompt, metadata, isinstance(environment, SkyRewardEnv)) == ([USER], {}, True)
    assert (step["reward"], step["done"], step["observations"]) == (4, True, [])
    assert stub.bodies[0]["conversations"] == [{"messages": [USER, answer("4")], "tools": tools}]
    assert stub.bodies[0]["truncation"] == "left"


class _Env:
    def __class_getitem__(cls, _: Any) -> type:
        return cls

    def close(self) -> None:
        pass


GYM = {"Env": _Env, "error": SimpleNamespace(Error=RuntimeError, RegistrationError=RuntimeError)}


# TRL's AsyncGRPO, which pickles reward functions and calls them in a spawned process


@pytest.mark.parametrize("kind", [TRLReward, AsyncTRLReward])
def test_trl_reward_has_no_connections_in_spawned_process(
    stub: StubService, kind: type[Any]
) -> None:
    client: Any = (ScoringClient if kind is TRLReward else AsyncScoringClient)(stub.url)
    function = kind(client, name="remote")
    prompts, completions = [[USER]] * 2, [[answer("4")], [answer("5")]]

    async def use_here() -> Any:
        rewards = await function(prompts, completions)
        sent = pickle.dumps(function)  # while its connections are open
        await client.close()
        return rewards, sent

    if kind is TRLReward:
        here, sent = function(prompts, completions), pickle.dumps(function)
    else:
        here, sent = asyncio.run(use_here())
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(call_pickled, sent, prompts, completions).result()
    assert here == there[0] == [4, 5]
    assert there[1] == "remote"
    assert len(set(stub.peers)) == 2
    if kind is TRLReward:
        client.close()


def call_pickled(sent: bytes, prompts: Any, completions: Any) -> tuple[list[float], str]:
    function = pickle.loads(sent)
    rewards = function(prompts, completions, completion_ids=[[1], [2]])
    return (asyncio.run(rewards) if asyncio.iscoroutine(rewards) else rewards), function.__name__


# Plan-RewardBench's `bt_remote`


def test_bt_remote_client_reads_score(service: StubService) -> None:
    """The client posts one conversation and reads `results[0].score`."""
    from urllib.request import Request, urlopen

    body = json.dumps({"model": "rm", "messages": conversation(4)}).encode()
    request = Request(f"{service.url}/v1/score", body, {"Content-Type": "application/json"})
    with urlopen(request) as response:
        (result,) = json.load(response)["results"]
    with ScoringClient(service.url, "rm") as client:
        assert [result["score"]] == client.score([conversation(4)])


def test_only_numbers_stand_in_for_rewards(
    stub: StubService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of these trainers leaves out samples without a reward."""
    broken = trace(Message(role="user", content="a"), Message(**answer("x")))
    monkeypatch.setenv("SKYREWARD_CLIENT_ON_ERROR", "-5")
    assert areal.reward_fn("", "x", messages=[USER]) == -5
    assert run(verifiers.reward(broken)) == -5
    base.get_reward_client().client.close()
    monkeypatch.setenv("SKYREWARD_CLIENT_ON_ERROR", "none")
    with pytest.raises(ServiceError, match="AReaL does not leave out samples"):
        areal.reward_fn("", "x", messages=[USER])
    with pytest.raises(ServiceError, match="verifiers does not leave out samples"):
        run(verifiers.reward(broken))
    with pytest.raises(ServiceError, match="Tinker does not leave out samples"):
        tinker.SkyRewardPreferenceModel()
