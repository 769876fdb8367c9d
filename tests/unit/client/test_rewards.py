"""The reward functions of trainers: what becomes of prompts, answers, settings and failures."""

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
from serve.jobs.sharegpt import normalize_messages

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
def chosen(stub: StubService, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Settings of the environment that name the stub."""
    made: list[ScoringClient] = []

    def make(*args: Any, **options: Any) -> ScoringClient:
        made.append(ScoringClient(*args, **options))
        return made[-1]

    monkeypatch.setenv("SKYREWARD_CLIENT_URLS", stub.url)
    monkeypatch.setattr(base, "ScoringClient", make)
    yield monkeypatch
    base._build_reward_client.cache_clear()
    for client in made:
        client.close()


@pytest.mark.parametrize("trainer", ["trl", "verl", "openrlhf", "ms_swift", "slime", "base"])
def test_a_trainer_needs_none_of_what_a_service_needs(trainer: str) -> None:
    heavy = ["torch", "transformers", "ray", "fastapi", "starlette", "huggingface_hub", trainer]
    code = (
        f"import sys, serve.client, serve.client.integrations.{trainer}; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


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


def test_prompts_that_a_template_wrote_are_refused_or_read() -> None:
    system = {"role": "system", "content": "Be brief."}
    refused = ConversationReader().build_conversation(CHATML, "4")
    assert isinstance(refused, ScoreError)
    assert refused.code == "foreign_template"
    assert "policy_template (chatml," in refused.message
    chatml = ConversationReader(policy_template="chatml")
    assert chatml.build_conversation(CHATML, "4<|im_end|>") == [
        system,
        user("2+2?"),
        assistant("4"),
    ]
    llama = ConversationReader(policy_template="llama3")
    assert llama.build_conversation(LLAMA3, "4<|eot_id|>") == [user("2+2?"), assistant("4")]
    # An answer may speak of markers, and plain prompts keep their text.
    assert ConversationReader().build_conversation("2+2?", "<|im_start|>") == [
        user("2+2?"),
        assistant("<|im_start|>"),
    ]
    with pytest.raises(ServiceError, match="'alpaca' is not known; there are: none, chatml"):
        ConversationReader(policy_template="alpaca")


def test_text_with_its_prompt_is_cut_where_the_answer_begins() -> None:
    assert ConversationReader().parse_conversation("2+2? = 4</s>", "2+2?") == [
        user("2+2?"),
        assistant(" = 4"),
    ]
    broken = ConversationReader().parse_conversation("1+1? 2", "2+2?")
    assert isinstance(broken, ScoreError)
    assert "does not begin with its prompt" in broken.message


def test_a_number_for_failures_is_given_only_if_chosen(caplog: pytest.LogCaptureFixture) -> None:
    results = [ScoreError("conversation_too_long", "9 tokens")]
    with pytest.raises(ScoringFailedError, match="conversation 0: conversation_too_long: 9 tokens"):
        ConversationReader().extract_rewards(results)
    with caplog.at_level(logging.WARNING):
        assert ConversationReader(failed_reward=-20.0).extract_rewards(results) == [-20.0]
    assert "1 of 1 conversations cannot be scored and get -20: 0: conversation_too" in caplog.text


def test_trl(stub: StubService) -> None:
    with ScoringClient(stub.url) as client:
        function = TRLReward(client)
        assert function.__name__ == "skyreward"
        text = function(prompts=["a", "b"], completions=["1", "2"], completion_ids=[[1], [2]])
        again = pickle.loads(pickle.dumps(function))
        chat = again(
            prompts=[[user("a")], [user("b")]],
            completions=[[assistant("3")], [assistant("4")]],
            trainer_state=None,
        )
        again.client.close()
        with pytest.raises(ScoringFailedError, match="1 of 2 conversations got no reward"):
            function(["a", "b"], ["1", "x"])
        forgiving = TRLReward(client, failed_reward=-5, truncation="left")
        assert forgiving(["a", "b"], ["1", "x"]) == [1, -5]
    assert (text, chat) == ([1, 2], [3, 4])
    assert stub.bodies[0]["conversations"][1] == [user("b"), assistant("2")]
    assert stub.bodies[-1]["truncation"] == "left"


def test_trl_asynchronous(stub: StubService) -> None:
    async def use() -> list[float]:
        async with AsyncScoringClient(stub.url) as client:
            return await AsyncTRLReward(client, name="rm")(prompts=["a"], completions=["7"])

    assert asyncio.run(use()) == [7]


def test_verl(stub: StubService, chosen: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(ScoringFailedError, match=r"no 'question', .* \(it has: 'prompt'\)"):
        compute_score_batch(["d"] * 2, ["1", "2"], [None] * 2, infos)


def test_openrlhf(stub: StubService, chosen: pytest.MonkeyPatch) -> None:
    chosen.setenv("SKYREWARD_CLIENT_POLICY_TEMPLATE", "chatml")
    answer = reward_func([CHATML + "4<|im_end|>"], [CHATML], ["4"], extra=1)
    assert answer == {"rewards": [4], "scores": [4], "extra_logs": {"skyreward": [4]}}
    assert stub.bodies[0]["conversations"][0][-1] == assistant("4")


def test_openrlhf_is_told_where_it_shows(
    stub: StubService, chosen: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(ScoringFailedError, match="foreign"):
        reward_func([CHATML + "4"], [CHATML])
    assert "no rewards for 1 queries" in caplog.text


def test_ms_swift(stub: StubService, chosen: pytest.MonkeyPatch) -> None:
    function = SkyRewardORM(args=None)
    for _ in range(2):  # each step has an event loop of its own
        scored = asyncio.run(function(["5"], messages=[conversation(5)], solution=["x"]))
        assert scored == [5]
    assert len(set(stub.peers)) == 1
    with pytest.raises(ServiceError, match="bad settings of the client: retry_s"):
        SkyRewardORM(retry_s=-1)


def test_slime(stub: StubService, chosen: pytest.MonkeyPatch) -> None:
    samples = [
        SimpleNamespace(prompt="2+2?", response="4"),
        SimpleNamespace(prompt=[user("2+2?")], response="5"),
    ]

    async def use() -> Any:
        found = await custom_rm(None, samples[0]), await custom_rm(None, samples, evaluation=True)
        await base.get_reward_client().async_client.close()
        return found

    assert asyncio.run(use()) == (4, [4, 5])


def test_plain(stub: StubService, chosen: pytest.MonkeyPatch) -> None:
    chosen.setenv("SKYREWARD_CLIENT_MODEL", "rm")
    chosen.setenv("SKYREWARD_CLIENT_API_KEY", "sk-1")
    assert score([conversation(1)]) == [1]
    assert (stub.bodies[0]["model"], stub.headers[0]["Authorization"]) == ("rm", "Bearer sk-1")


def test_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYREWARD_CLIENT_URLS", "http://a:1, http://b:2")
    monkeypatch.setenv("SKYREWARD_CLIENT_API_KEY", "sk-secret")
    assert ClientSettings.load().urls == ("http://a:1", "http://b:2")
    assert "sk-secret" not in repr(ClientSettings.load())
    # They are no business of a service on the same machine.
    assert Settings.load().port == 8000
    monkeypatch.setenv("SKYREWARD_CLIENT_POLICY_TEMPLATE", "alpaca")
    with pytest.raises(ServiceError, match=r"policy_template.*: Input should be .*'chatml'"):
        ClientSettings.load()
    monkeypatch.setenv("SKYREWARD_CLIENT_URL", "http://a:1")
    with pytest.raises(ServiceError, match=r"SKYREWARD_CLIENT_URL, which is not a setting; .*_URLS"):
        ClientSettings.load()


TOOLS = [{"type": "function", "function": {"name": "tide", "parameters": None}}]
# As a table gives it: every call has the arguments of all functions, null where not its own.
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


def test_trl_gives_the_column_of_tools(stub: StubService) -> None:
    columns = {"tools": [TOOLS, json.dumps(TOOLS), None, ""], "label": [1] * 4}
    with ScoringClient(stub.url) as client:
        found = TRLReward(client)(["a"] * 4, ["1", "2", "3", "4"], **columns)
        with pytest.raises(ServiceError, match="'tools' has not one value for each of 1 rows"):
            TRLReward(client)(["a"], ["1"], tools=[None, None])
    assert found == [1, 2, 3, 4]
    sent = stub.bodies[0]["conversations"]
    assert sent[0] == {"messages": [user("a"), assistant("1")], "tools": SENT_TOOLS}
    assert sent[1] == {"messages": [user("a"), assistant("2")], "tools": json.dumps(TOOLS)}
    assert sent[2:] == [[user("a"), assistant("3")], [user("a"), assistant("4")]]

    async def use() -> list[float]:
        async with AsyncScoringClient(stub.url) as client:
            return await AsyncTRLReward(client)(["a"], ["7"], tools=[TOOLS])

    assert asyncio.run(use()) == [7]
    assert stub.bodies[-1]["conversations"][0]["tools"] == SENT_TOOLS


def test_ms_swift_and_slime_give_tools(stub: StubService, chosen: pytest.MonkeyPatch) -> None:
    messages = conversation(5)
    assert asyncio.run(SkyRewardORM()(["5"], messages=[messages], tools=[TOOLS])) == [5]
    assert stub.bodies[-1]["conversations"] == [{"messages": messages, "tools": SENT_TOOLS}]
    samples = [
        SimpleNamespace(prompt=[user("a")], response="5", metadata={"tools": TOOLS}),
        SimpleNamespace(prompt="a", response="6", metadata={"tools": TOOLS}),
        SimpleNamespace(prompt=[user("a")], response="7", metadata={}),
    ]

    async def use() -> Any:
        found = await custom_rm(None, samples)
        await base.get_reward_client().async_client.close()
        return found

    assert asyncio.run(use()) == [5, 6, 7]
    sent = stub.bodies[-1]["conversations"]
    assert sent[0] == {"messages": [user("a"), assistant("5")], "tools": SENT_TOOLS}
    assert sent[1:] == [[user("a"), assistant("6")], [user("a"), assistant("7")]]


def test_rows_of_tables_are_sent_as_jobs_read_them(stub: StubService) -> None:
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


def test_a_conversation_nested_without_end_costs_no_neighbour(stub: StubService) -> None:
    endless: dict[str, Any] = assistant("4")
    endless["self"] = endless
    with ScoringClient(stub.url) as client:
        bad, good = client.results([[user("a"), endless], conversation(5)])
    assert isinstance(bad, ScoreError)
    assert "cannot carry" in bad.message
    assert good.reward == 5  # type: ignore[union-attr]


def test_a_warning_is_logged_once_for_each_kind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_LOGGED_KINDS", set())
    results = [
        Reward(1.0, 5, warnings=("template_ignores_tools: of a", "x: one")),
        Reward(2.0, 5, warnings=("template_ignores_tools: of b",)),
    ]
    with caplog.at_level(logging.WARNING):
        assert ConversationReader().extract_rewards(results) == [1, 2]
        assert ConversationReader().extract_rewards(results) == [1, 2]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "template_ignores_tools",
        "x",
    ]
