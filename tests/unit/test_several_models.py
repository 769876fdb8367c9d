"""`/v1/score` with `models`: several models side by side, combined and calibrated rewards."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SPECS, build_checkpoint
from fakes import INFO, FakeBackend, conversation, ready
from fastapi.testclient import TestClient
from kinds import build_judge, build_step_model, serving_models
from waiting import until

from rm_core import BatchResult, Fingerprint, NotReadyError, OverloadedError
from rm_core.calibration import Calibration
from serve.api.app import create_app
from serve.api.schemas import ModelsScoreResponse
from serve.config.settings import Settings
from serve.errors import ModelAsleepError
from serve.scoring.service import ScoringService

CHATS = [conversation("4"), conversation("four, and not five"), conversation("")[:1]]
DIALOG = [*conversation("4"), *conversation("6", "3+3?")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "a": build_checkpoint(root / "a", SPECS["llama-v0.2"]),
        "b": build_checkpoint(root / "b", SPECS["qwen3"]),
        "prm": build_step_model(root / "prm"),
        "judge": build_judge(root / "judge"),
    }


@pytest.fixture(scope="module")
def client(folders: dict[str, Path]) -> Iterator[TestClient]:
    judge = {"name": str(folders["judge"]), "kind": "judge"}
    models = {name: folders[name] for name in ("a", "b", "prm")}
    with serving_models(**models, judge=judge) as client:
        yield client


def score(client: TestClient, status: int = 200, **body: Any) -> Any:
    answer = client.post("/v1/score", json={"conversations": CHATS} | body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_rewards_are_those_of_each_model_alone(client: TestClient) -> None:
    alone = {name: score(client, model=name) for name in ("a", "b", "prm")}
    together = score(
        client, models=["a", "b", "prm"], combine={"a": 0.7, "b": -0.3}, aggregation="last"
    )
    ModelsScoreResponse.model_validate(together)
    assert together["fingerprints"] == {n: answer["fingerprint"] for n, answer in alone.items()}
    for name, answer in alone.items():
        usage = together["usage"][name]
        assert usage["num_tokens"] == answer["usage"]["num_tokens"]
        assert usage["num_cached_tokens"] == usage["num_tokens"]  # scored alone before
        for index, expected in enumerate(answer["results"]):
            result = together["results"][index]
            if "error" in expected:
                assert result["errors"][name] == expected["error"]
                assert name not in result["rewards"]
                continue
            assert result["rewards"][name] == expected["reward"]
            assert result["details"][name] == {
                key: value for key, value in expected.items() if key not in ("index", "reward")
            }
    for result in together["results"][:2]:
        rewards = result["rewards"]
        assert result["reward"] == pytest.approx(0.7 * rewards["a"] - 0.3 * rewards["b"], abs=1e-12)
        assert "errors" not in result
    assert together["results"][2]["errors"].keys() == {"a", "b", "prm"}
    assert "reward" not in together["results"][2]
    clipped = score(client, models=["a", "b"], combine={"a": 1.0, "b": 1.0}, clip=[-0.01, 0.01])
    for result in clipped["results"][:2]:
        parts = [min(max(reward, -0.01), 0.01) for reward in result["rewards"].values()]
        assert result["reward"] == pytest.approx(sum(parts), abs=1e-12)


def test_turns_tools_and_truncation_work_as_for_one_model(client: TestClient) -> None:
    body: dict[str, Any] = {"conversations": [DIALOG], "turns": "all"}
    result = score(client, models=["a", "b"], **body)["results"][0]
    for name in ("a", "b"):
        alone = score(client, model=name, **body)["results"][0]
        assert result["details"][name]["turn_rewards"] == alone["turn_rewards"]
        assert result["rewards"][name] == alone["reward"]
    long = [[*conversation("word " * 3000), *conversation("4")]]
    result = score(client, models=["a", "prm"], conversations=long, truncation="left")["results"][0]
    assert result["details"]["a"]["truncated"]
    assert result["errors"]["prm"]["code"] == "invalid_conversation"
    assert "wrong_kind" in json.dumps(score(client, 400, models=["a", "prm"], turns="all"))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    alone = score(client, model="b", tools=tools)["results"][0]
    together = score(client, models=["a", "b"], tools=tools)["results"][0]
    assert together["rewards"].get("b") == alone.get("reward")


def test_single_conversation_in_messages(client: TestClient) -> None:
    answer = client.post("/v1/score", json={"messages": CHATS[0], "models": ["a"]}).json()
    assert answer["results"][0]["rewards"] == score(client, models=["a"])["results"][0]["rewards"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"models": ["a", "c", "d"]}, 404, "models not served here: 'c', 'd'; served: a, b, prm"),
        ({"models": ["a", "judge"]}, 400, "model 'judge' is a judge"),
        ({"models": ["a", "a"]}, 400, "names a model twice"),
        ({"models": []}, 400, "at least 1 item"),
        ({"models": ["a"], "model": "b"}, 400, "exclude each other"),
        ({"models": ["a"], "combine": {"b": 1}}, 400, "'b', which is not one of `models`"),
        ({"model": "a", "combine": {"a": 1}}, 400, "'a', which is not one of `models`"),
        ({"models": ["a"], "clip": [0, 1]}, 400, "need `combine`"),
        ({"models": ["a"], "combine": {"a": 1}, "clip": [1, 0]}, 400, "the first is greater"),
        ({"models": ["a"], "combine": {"a": "1e400"}}, 400, "finite number"),
        (
            {"models": ["a", "b"], "combine": {"a": 1e308, "b": 1e308}, "clip": [9, 10]},
            400,
            "too large for a double",
        ),
        (
            {"models": ["a", "b"], "combine": {"a": 1e308, "b": -1e308}, "clip": [9, 10]},
            400,
            "too large for a double",
        ),
        ({"models": ["a", "b"], "aggregation": "min"}, 400, "does not read `aggregation`"),
        (
            {"models": ["a"], "combine": {"a": 1}, "calibrated": True},
            400,
            "model 'a' has no calibration",
        ),
    ],
)
def test_bad_request_is_refused_whole(
    client: TestClient, body: dict[str, Any], status: int, message: str
) -> None:
    assert message in score(client, status, **body)["error"]["message"]


def test_number_of_conversations_counts_once_a_model(folders: dict[str, Path]) -> None:
    models = {name: folders[name] for name in ("a", "b")}
    with serving_models({"max_conversations": 3}, **models) as client:
        assert len(score(client, models=["a"])["results"]) == 3
        error = score(client, 400, models=["a", "b"])["error"]
        assert "6 conversations (one a model)" in error["message"]


@contextlib.contextmanager
def serving_fakes(*models: dict[str, Any]) -> Iterator[tuple[TestClient, list[FakeBackend]]]:
    """A client of an application whose models, each with the demo's tokenizer, are fakes."""
    settings = Settings.load(models=[{"name": "demo", "cache_bytes": 0, **m} for m in models])
    backends = [FakeBackend() for _ in models]
    service = ScoringService(list(zip(settings.models, backends, strict=True)), settings)
    with TestClient(create_app(service, settings), raise_server_exceptions=False) as client:
        yield client, backends


def test_one_model_fails_alone() -> None:
    with serving_fakes({"alias": "a"}, {"alias": "b"}) as (client, (a, b)):
        until(lambda: ready(client))
        for failure in (
            ModelAsleepError("model 'b' is asleep", retry_after_s=2.0),
            NotReadyError("no replica"),
        ):
            b.failure = failure
            answer = score(client, models=["a", "b"], combine={"a": 1, "b": 1})
            assert answer["fingerprints"].keys() == answer["usage"].keys() == {"a"}
            for result in answer["results"][:2]:
                assert result["rewards"].keys() == {"a"}
                assert result["errors"] == {"b": {"code": failure.code, "message": failure.detail}}
                assert "reward" not in result
        assert score(client, models=["a", "b"], combine={"a": 2})["results"][0]["reward"] > 0
        # A full queue refuses the request, so that clients send it again.
        b.failure = OverloadedError("the queue is full", retry_after_s=3.0)
        answer = client.post("/v1/score", json={"models": ["a", "b"], "conversations": CHATS})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        assert "Retry-After" in answer.headers
        b.failure = NotReadyError("no replica")
        # If all fail, the request does, and may be sent again.
        a.failure = b.failure
        answer = client.post("/v1/score", json={"models": ["b", "a"], "conversations": CHATS})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")


def test_models_score_at_the_same_time() -> None:
    """Neither of two models answers before the other one has the conversations."""
    with serving_fakes({"alias": "a"}, {"alias": "b"}) as (client, backends):
        until(lambda: ready(client))
        barrier = asyncio.Barrier(2)

        async def meet(self: FakeBackend, sequences: Any, backlog: int) -> BatchResult:
            async with asyncio.timeout(60):
                await barrier.wait()
            return BatchResult((1.0,), 1, 0.0, self.info.fingerprint)

        for backend in backends:
            backend.run_batch = meet.__get__(backend)
        results = score(client, models=["a", "b"], conversations=CHATS[:1])["results"]
        assert results[0]["rewards"] == {"a": 1.0, "b": 1.0}


def write_calibration(path: Path, fingerprint: Fingerprint, **fields: Any) -> str:
    values: dict[str, Any] = {
        "model": "m",
        "count": 9,
        "mean": 10.0,
        "std": 4.0,
        "quantiles": {},
    } | fields
    path.write_text(Calibration(fingerprint=fingerprint, **values).to_json())
    return str(path)


def test_calibrated_rewards(tmp_path: Path) -> None:
    path = write_calibration(tmp_path / "a.json", INFO.fingerprint)
    fakes = serving_fakes({"alias": "a", "calibration": path}, {"alias": "b"})
    with fakes as (client, (a, _)):
        until(lambda: ready(client))
        alone = score(client, model="a")["results"][0]
        assert alone["calibrated_reward"] == (alone["reward"] - 10) / 4
        ranked = client.post(
            "/v1/rank", json={"model": "a", "prompt": "2+2?", "responses": ["4", "5"]}
        ).json()
        assert all("calibrated_reward" in result for result in ranked["results"])
        result = score(client, models=["a", "b"], combine={"a": 2.0}, calibrated=True, clip=[0, 1])
        first = result["results"][0]
        assert first["calibrated_rewards"] == {"a": alone["calibrated_reward"]}
        assert first["reward"] == 2 * min(max(alone["calibrated_reward"], 0), 1)
        message = score(client, 400, models=["a", "b"], combine={"b": 1}, calibrated=True)["error"]
        assert "model 'b' has no calibration" in message["message"]
        # New weights: the calibration is that of others, until those are back.
        old = a.info
        a.info = replace(old, revision="r2", version="step-2")
        after = score(client, model="a")
        assert after["fingerprint"]["version"] == "step-2"
        assert "calibrated_reward" not in after["results"][0]
        score(client, 400, models=["a", "b"], combine={"a": 1}, calibrated=True)
        a.info = old
        assert "calibrated_reward" in score(client, model="a")["results"][0]
        shown = client.get("/info").json()["settings"]["models"][0]["calibration"]
        assert shown == "a.json"


@pytest.mark.parametrize(
    ("fingerprint", "fields", "reason"),
    [
        ({"revision": "other"}, {}, "is of revision other, and the model has r"),
        ({"template_sha256": "u"}, {}, "is of template_sha256 u, and the model has t"),
        ({}, {"aggregation": "min"}, "is of min aggregation of steps"),
    ],
)
def test_calibration_of_another_model_is_refused(
    tmp_path: Path, fingerprint: dict[str, str], fields: dict[str, Any], reason: str
) -> None:
    other = replace(INFO.fingerprint, **fingerprint)
    path = write_calibration(tmp_path / "c.json", other, **fields)
    with serving_fakes({"alias": "a", "calibration": path}) as (client, _):
        until(lambda: client.get("/ready").json()["models"]["a"]["state"] == "failed")
        assert reason in client.get("/ready").json()["models"]["a"]["message"]
        assert score(client, 503)["error"]["code"] == "not_ready"
