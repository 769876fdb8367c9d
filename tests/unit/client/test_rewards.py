"""Reward functions of trainers: prompts, answers, settings and failures."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from stub_service import StubService, conversation, stub_service

from rm_core import Reward, ScoreError, parse_conversation
from serve.client import AsyncScoringClient, ScoringClient, ScoringFailedError, ServiceError
from serve.client.integrations import base
from serve.client.integrations.base import ConversationReader, score
from serve.client.integrations.ms_swift import SkyRewardORM
from serve.client.integrations.openrlhf import reward_func
from serve.client.integrations.slime import custom_rm
from serve.client.integrations.trl import AsyncTRLReward, TRLReward
from serve.client.integrations.verl import compute_score, compute_score_batch
from serve.client.settings import ClientSettings
from serve.config.settings import Settings
from serve.jobs.turns import normalize_messages

CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
LLAMA3 = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture
def stub() -> Iterator[StubService]:
    with stub_service() as service:
        yield service


@pytest.fixture
def client_env(stub: StubService, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Set `SKYREWARD_CLIENT_URLS` to the stub's URL; return the monkeypatch for more variables."""
    clients: list[ScoringClient] = []

    def make(*args: Any, **options: Any) -> ScoringClient:
        clients.append(ScoringClient(*args, **options))
        return clients[-1]

    monkeypatch.setenv("SKYREWARD_CLIENT_URLS", stub.url)
    monkeypatch.setattr(base, "ScoringClient", make)
    yield monkeypatch
    base._build_reward_client.cache_clear()
    for client in clients:
        client.close()


@pytest.mark.parametrize("trainer", ["trl", "verl", "openrlhf", "ms_swift", "slime", "base"])
def test_integration_imports_no_service_dependencies(trainer: str) -> None:
    heavy = [
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
        "ray",
        "fastapi",
        "starlette",
        "huggingface_hub",
        trainer,
    ]
    code = (
        f"import sys, serve.client, serve.client.integrations.{trainer}; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert completed.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("2+2?", "4"),
        ([user("2+2?")], "4"),
        ([user("2+2?")], [assistant("4")]),
        ("2+2?", [assistant("4")]),
        (np.array([user("2+2?")], dtype=object), assistant("4")),
    ],
)
def test_prompts_and_answers_are_text_or_messages(prompt: Any, answer: Any) -> None:
    assert ConversationReader().build_conversation(prompt, answer) == [user("2+2?"), assistant("4")]


def test_rendered_prompt_needs_policy_template() -> None:
    system = {"role": "system", "content": "Be brief."}
    error = ConversationReader().build_conversation(CHATML, "4")
    assert isinstance(error, ScoreError)
    assert error.code == "foreign_template"
    assert "policy_template (chatml," in error.message
    chatml = ConversationReader(policy_template="chatml")
    assert chatml.build_conversation(CHATML, "4<|im_end|>") == [
        system,
        user("2+2?"),
        assistant("4"),
    ]
    llama = ConversationReader(policy_template="llama3")
    assert llama.build_conversation(LLAMA3, "4<|eot_id|>") == [user("2+2?"), assistant("4")]
    # An answer may contain markers, and plain prompts keep their text.
    assert ConversationReader().build_conversation("2+2?", "<|im_start|>") == [
        user("2+2?"),
        assistant("<|im_start|>"),
    ]
    with pytest.raises(ServiceError, match="'alpaca' is unknown; the choices are: none, chatml"):
        ConversationReader(policy_template="alpaca")


def test_images_of_a_rendered_prompt_are_refused() -> None:
    for reader in (ConversationReader(), ConversationReader(policy_template="chatml")):
        error = reader.build_conversation(CHATML, "4", images=[b"a file"])
        assert isinstance(error, ScoreError)
        assert "no place for them" in error.message
    kept = ConversationReader().build_conversation("2+2?", "4", images=[b"a file"])
    assert not isinstance(kept, ScoreError)


def test_text_is_split_after_its_prompt() -> None:
    assert ConversationReader().parse_conversation("2+2? = 4</s>", "2+2?") == [
        user("2+2?"),
        assistant(" = 4"),
    ]
    broken = ConversationReader().parse_conversation("1+1? 2", "2+2?")
    assert isinstance(broken, ScoreError)
    assert "does not begin with its prompt" in broken.message


def test_failed_reward_is_used_only_if_set(caplog: pytest.LogCaptureFixture) -> None:
    results = [ScoreError("conversation_too_long", "9 tokens")]
    with pytest.raises(ScoringFailedError, match="conversation 0: conversation_too_long: 9 tokens"):
        ConversationReader().extract({"": results})
    with caplog.at_level(logging.WARNING):
        assert ConversationReader(failed_reward=-20.0).extract({"": results}).rewards == [-20.0]
    assert "1 of 1 conversations cannot be scored and get -20: 0: conversation_too" in caplog.text


def test_trl_reward(stub: StubService) -> None:
    with ScoringClient(stub.url) as client:
        function = TRLReward(client)
        assert function.__name__ == "skyreward"
        text = function(prompts=["a", "b"], completions=["1", "2"], completion_ids=[[1], [2]])
        unpickled = pickle.loads(pickle.dumps(function))
        chat = unpickled(
            prompts=[[user("a")], [user("b")]],
            completions=[[assistant("3")], [assistant("4")]],
            trainer_state=None,
        )
        unpickled.client.close()
        with pytest.raises(ScoringFailedError, match="1 of 2 conversations got no reward"):
            function(["a", "b"], ["1", "x"])
        forgiving = TRLReward(client, failed_reward=-5, truncation="left")
        assert forgiving(["a", "b"], ["1", "x"]) == [1, -5]
    assert (text, chat) == ([1, 2], [3, 4])
    assert stub.bodies[0]["conversations"][1] == [user("b"), assistant("2")]
    assert stub.bodies[-1]["truncation"] == "left"


def test_async_trl_reward(stub: StubService) -> None:
    async def use() -> list[float]:
        async with AsyncScoringClient(stub.url) as client:
            return await AsyncTRLReward(client, name="rm")(prompts=["a"], completions=["7"])

    assert asyncio.run(use()) == [7]


def test_verl_reward_functions(stub: StubService, client_env: pytest.MonkeyPatch) -> None:
    async def single() -> list[float]:
        infos: list[dict[str, Any]] = [
            {"question": "2+2?", "index": 1},
            {"question": np.array([user("2+2?")], dtype=object)},
        ]
        scored = [
            await compute_score("gsm8k", "4", "4", info, reward_model_tokenizer=None)
            for info in infos
        ]
        await base.get_reward_client().async_client.close()
        return scored

    assert asyncio.run(single()) == [4, 4]
    assert [b["conversations"] for b in stub.bodies] == [[[user("2+2?"), assistant("4")]]] * 2
    infos = [{"prompt": "a"}, {"prompt": "b"}]
    assert compute_score_batch(["d"] * 2, ["1", "2"], [None] * 2, infos, prompt_field="prompt") == [
        1,
        2,
    ]
    with pytest.raises(ScoringFailedError, match=r"no key 'question' .* \(its keys: 'prompt'\)"):
        compute_score_batch(["d"] * 2, ["1", "2"], [None] * 2, infos)


def test_openrlhf_reward_func(stub: StubService, client_env: pytest.MonkeyPatch) -> None:
    client_env.setenv("SKYREWARD_CLIENT_POLICY_TEMPLATE", "chatml")
    answer = reward_func([CHATML + "4<|im_end|>"], [CHATML], ["4"], extra=1)
    assert answer == {"rewards": [4], "scores": [4], "extra_logs": {"skyreward": [4]}}
    assert stub.bodies[0]["conversations"][0][-1] == assistant("4")


def test_openrlhf_logs_failures_as_errors(
    stub: StubService, client_env: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(ScoringFailedError, match="foreign"):
        reward_func([CHATML + "4"], [CHATML])
    assert "no rewards for 1 queries" in caplog.text


def test_ms_swift_orm_reuses_connections(stub: StubService, client_env: pytest.MonkeyPatch) -> None:
    function = SkyRewardORM(args=None)
    for _ in range(2):  # each step has a new event loop
        scored = asyncio.run(function(["5"], messages=[conversation(5)], solution=["x"]))
        assert scored == [5]
    assert len(set(stub.peers)) == 1
    with pytest.raises(ServiceError, match="bad settings of the client: retry_s"):
        SkyRewardORM(retry_s=-1)


def test_slime_custom_rm(stub: StubService, client_env: pytest.MonkeyPatch) -> None:
    samples = [
        SimpleNamespace(prompt="2+2?", response="4"),
        SimpleNamespace(prompt=[user("2+2?")], response="5"),
    ]

    async def use() -> Any:
        rewards = await custom_rm(None, samples[0]), await custom_rm(None, samples, evaluation=True)
        await base.get_reward_client().async_client.close()
        return rewards

    assert asyncio.run(use()) == (4, [4, 5])


def test_score_reads_client_environment(stub: StubService, client_env: pytest.MonkeyPatch) -> None:
    client_env.setenv("SKYREWARD_CLIENT_MODEL", "rm")
    client_env.setenv("SKYREWARD_CLIENT_API_KEY", "sk-1")
    assert score([conversation(1)]) == [1]
    assert (stub.bodies[0]["model"], stub.headers[0]["Authorization"]) == ("rm", "Bearer sk-1")


def test_client_settings_read_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYREWARD_CLIENT_URLS", "http://a:1, http://b:2")
    monkeypatch.setenv("SKYREWARD_CLIENT_API_KEY", "sk-secret")
    assert ClientSettings.load().urls == ("http://a:1", "http://b:2")
    assert "sk-secret" not in repr(ClientSettings.load())
    # A service on the same machine ignores the variables.
    assert Settings.load().port == 8000
    monkeypatch.setenv("SKYREWARD_CLIENT_POLICY_TEMPLATE", "alpaca")
    with pytest.raises(ServiceError, match=r"policy_template.*: Input should be .*'chatml'"):
        ClientSettings.load()
    monkeypatch.setenv("SKYREWARD_CLIENT_URL", "http://a:1")
    with pytest.raises(
        ServiceError, match=r"SKYREWARD_CLIENT_URL, which is not a setting; .*_URLS"
    ):
        ClientSettings.load()


TOOLS = [{"type": "function", "function": {"name": "tide", "parameters": None}}]
# A row of a table: every call has the arguments of all functions, null for those of others.
ROW = [
    user("Tide?") | {"tool_calls": None},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "tide", "arguments": {"port": "Brest", "x": None}}}],
    },
    {"role": "tool", "content": "06:00", "tool_calls": None},
    assistant("6") | {"tool_calls": None},
]
SENT_TOOLS = [{"type": "function", "function": {"name": "tide"}}]


def test_trl_sends_column_tools(stub: StubService) -> None:
    columns = {"tools": [TOOLS, json.dumps(TOOLS), None, ""], "label": [1] * 4}
    with ScoringClient(stub.url) as client:
        rewards = TRLReward(client)(["a"] * 4, ["1", "2", "3", "4"], **columns)
        with pytest.raises(ServiceError, match="'tools' must have one value for each of 1 rows"):
            TRLReward(client)(["a"], ["1"], tools=[None, None])
    assert rewards == [1, 2, 3, 4]
    sent = stub.bodies[0]["conversations"]
    assert sent[0] == {"messages": [user("a"), assistant("1")], "tools": SENT_TOOLS}
    assert sent[1] == {"messages": [user("a"), assistant("2")], "tools": json.dumps(TOOLS)}
    assert sent[2:] == [[user("a"), assistant("3")], [user("a"), assistant("4")]]

    async def use() -> list[float]:
        async with AsyncScoringClient(stub.url) as client:
            return await AsyncTRLReward(client)(["a"], ["7"], tools=[TOOLS])

    assert asyncio.run(use()) == [7]
    assert stub.bodies[-1]["conversations"][0]["tools"] == SENT_TOOLS


def test_ms_swift_and_slime_send_tools(stub: StubService, client_env: pytest.MonkeyPatch) -> None:
    messages = conversation(5)
    assert asyncio.run(SkyRewardORM()(["5"], messages=[messages], tools=[TOOLS])) == [5]
    assert stub.bodies[-1]["conversations"] == [{"messages": messages, "tools": SENT_TOOLS}]
    samples = [
        SimpleNamespace(prompt=[user("a")], response="5", metadata={"tools": TOOLS}),
        SimpleNamespace(prompt="a", response="6", metadata={"tools": TOOLS}),
        SimpleNamespace(prompt=[user("a")], response="7", metadata={}),
    ]

    async def use() -> Any:
        rewards = await custom_rm(None, samples)
        await base.get_reward_client().async_client.close()
        return rewards

    assert asyncio.run(use()) == [5, 6, 7]
    sent = stub.bodies[-1]["conversations"]
    assert sent[0] == {"messages": [user("a"), assistant("5")], "tools": SENT_TOOLS}
    assert sent[1:] == [[user("a"), assistant("6")], [user("a"), assistant("7")]]


def test_table_rows_are_sent_as_jobs_read_them(stub: StubService) -> None:
    array = np.array([dict(message) for message in ROW], dtype=object)
    with ScoringClient(stub.url) as client:
        assert [r.reward for r in client.results([ROW, array])] == [6, 6]  # type: ignore[union-attr, list-item]
        assert TRLReward(client)([ROW[:-1]], [[ROW[-1]]]) == [6]
        client.compare([{"prompt": ROW[:-1], "chosen": [ROW[-1]], "rejected": [ROW[-1]]}])
        client.rank(ROW[:-1], [[ROW[-1]]])  # type: ignore[arg-type]
    read = parse_conversation(normalize_messages(ROW))
    for body in stub.bodies[:2]:
        for sent in body["conversations"]:
            assert parse_conversation(sent) == read
    pair = stub.bodies[-2]["pairs"][0]
    assert [*pair["prompt"], *pair["chosen"]] == stub.bodies[0]["conversations"][0]
    assert stub.bodies[-1]["prompt"] == pair["prompt"]
    assert "null" not in json.dumps(stub.bodies)


def test_self_referencing_conversation_fails_alone(stub: StubService) -> None:
    endless: dict[str, Any] = assistant("4")
    endless["self"] = endless
    with ScoringClient(stub.url) as client:
        failed, scored = client.results([[user("a"), endless], conversation(5)])
    assert isinstance(failed, ScoreError)
    assert "cannot represent" in failed.message
    assert scored.reward == 5  # type: ignore[union-attr]


def test_warning_is_logged_once_per_kind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_LOGGED_KINDS", set())
    results = [
        Reward(1.0, 5, warnings=("template_ignores_tools: of a", "x: one")),
        Reward(2.0, 5, warnings=("template_ignores_tools: of b",)),
    ]
    with caplog.at_level(logging.WARNING):
        assert ConversationReader().extract({"": results}).rewards == [1, 2]
        assert ConversationReader().extract({"": results}).rewards == [1, 2]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "template_ignores_tools",
        "x",
    ]
