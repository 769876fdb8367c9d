"""The HTTP application with a fake backend: states, failures, draining."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from fakes import INFO, FakeBackend, conversation, ready, serving
from fastapi.testclient import TestClient
from waiting import PATIENCE_S, settle, until, until_async

from rm_core import ModelLoadError, NotReadyError, ScoreError, pack
from serve.api.app import create_app, drain
from serve.api.routes import results
from serve.config.settings import Settings
from serve.errors import UnknownModelError
from serve.scoring.service import ScoringService

BODY = {"conversations": [conversation(text) for text in ("4", "five", "4")]}


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(backend: FakeBackend) -> Iterator[TestClient]:
    with serving(backend) as client:
        yield client


async def until_ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await client.get("/ready")).status_code != 200:
            await asyncio.sleep(0.01)


def test_small_request_is_one_batch_with_results_in_order(
    client: TestClient, backend: FakeBackend
) -> None:
    until(lambda: ready(client))
    answer = client.post("/v1/score", json=BODY).json()
    first, second, third = answer["results"]
    assert first["reward"] == third["reward"] == first["num_tokens"]
    assert second["reward"] == second["num_tokens"]
    assert [len(batch) for batch in backend.batches] == [2]


def test_large_request_is_split_into_batches(client: TestClient, backend: FakeBackend) -> None:
    until(lambda: ready(client))
    body = {"conversations": [conversation(f"{i} " * 10) for i in range(150)]}
    results = client.post("/v1/score", json=body).json()["results"]
    assert [r["reward"] for r in results] == [r["num_tokens"] for r in results]
    assert len(backend.batches) > 1
    budget = INFO.max_batch_tokens
    assert all(pack(b, 10**6).num_tokens <= budget or len(b) == 1 for b in backend.batches)


def test_not_ready_backend_is_503_with_retry_after(
    client: TestClient, backend: FakeBackend
) -> None:
    until(lambda: ready(client))
    backend.failure = NotReadyError("it has no replica")
    answer = client.post("/v1/score", json=BODY)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "not_ready"
    backend.failure = None
    assert client.post("/v1/score", json=BODY).status_code == 200


def test_model_without_replica_is_not_ready_but_accepts_requests(
    client: TestClient, backend: FakeBackend
) -> None:
    until(lambda: ready(client))
    backend.num_replicas = 0
    state = client.get("/ready")
    assert state.status_code == 503
    assert state.json()["models"]["demo"]["state"] == "restarting"
    assert client.get("/health").status_code == 200
    assert client.post("/v1/score", json=BODY).status_code == 200
    backend.num_replicas = 1
    assert ready(client)


def test_unhealthy_model_is_not_ready_until_it_recovers(
    client: TestClient, backend: FakeBackend
) -> None:
    until(lambda: ready(client))
    backend.refresh_failure = backend.load_failure = NotReadyError("its thread is stuck")
    until(lambda: not ready(client))
    state = client.get("/ready").json()["models"]["demo"]
    assert (state["state"], state["message"]) == ("failed", "its thread is stuck")
    refused = client.post("/v1/score", json=BODY)
    assert refused.status_code == 503
    assert "its thread is stuck" in refused.json()["error"]["message"]
    backend.refresh_failure = backend.load_failure = None
    until(lambda: ready(client))


def test_full_queue_is_503_until_it_drains(backend: FakeBackend) -> None:
    async def scenario() -> None:
        settings = Settings.load(max_queued_tokens=100)
        service = ScoringService([(settings.models[0], backend)], settings)
        app = create_app(service, settings)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            await until_ready(client)
            await client.post("/v1/score", json=BODY)  # so that the throughput is known
            backend.gate = asyncio.Event()
            big = {"conversations": [conversation(f"{i} " * 10) for i in range(20)]}
            accepted = asyncio.create_task(client.post("/v1/score", json=big))
            model = service.models["demo"]
            await until_async(lambda: model.dispatcher.queued_tokens >= 100)
            refused = await client.post("/v1/score", json=BODY)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "overloaded"
            assert int(refused.headers["retry-after"]) >= 1
            backend.gate.set()
            assert (await accepted).status_code == 200
            assert (await client.post("/v1/score", json=BODY)).status_code == 200

    asyncio.run(scenario())


def test_model_that_fails_to_load_never_becomes_ready(backend: FakeBackend) -> None:
    backend.load_failure = ModelLoadError("no score.weight")
    settings = Settings.load()
    app = create_app(ScoringService([(settings.models[0], backend)], settings), settings)
    with TestClient(app) as client:
        until(lambda: client.get("/ready").json()["models"]["demo"]["state"] == "failed")
        state = client.get("/ready")
        assert state.status_code == 503
        assert state.json()["models"]["demo"]["message"] == "no score.weight"
        refused = client.post("/v1/score", json=BODY)
        assert refused.status_code == 503
        assert "no score.weight" in refused.json()["error"]["message"]


def test_unexpected_exception_is_500_without_internals(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: ready(client))

    def broken(*_: object) -> None:
        raise RuntimeError("secret path /srv/x")

    monkeypatch.setattr(ScoringService, "resolve_model", broken)
    answer = client.post("/v1/score", json=BODY)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    again = client.post("/v1/score", json=BODY, headers={"x-request-id": "step-7"})
    assert again.headers.get_list("x-request-id") == ["step-7"]
    assert len(answer.headers.get_list("x-request-id")) == 1


def test_backend_exception_is_error_of_conversation(
    client: TestClient, backend: FakeBackend
) -> None:
    until(lambda: ready(client))
    backend.failure = RuntimeError("secret path /srv/x")
    answer = client.post("/v1/score", json=BODY)
    assert answer.status_code == 200
    assert {result["error"]["code"] for result in answer.json()["results"]} == {"scoring_failed"}
    assert "secret" not in answer.text


def test_unexpected_load_failure_is_retried(client: TestClient, backend: FakeBackend):
    until(lambda: ready(client))
    backend.refresh_failure = NotReadyError("gone")
    backend.load_failure = RuntimeError("something else")
    until(lambda: client.get("/ready").json()["models"]["demo"].get("message", "").startswith("Ru"))
    backend.refresh_failure = backend.load_failure = None
    until(lambda: ready(client))


def test_model_alias_takes_precedence_over_name() -> None:
    def service(*models: str) -> ScoringService:
        settings = Settings.load(models=list(models))
        return ScoringService([(model, FakeBackend()) for model in settings.models], settings)

    assert service("new=demo", "demo=demo").resolve_model("demo").settings.alias == "demo"
    assert service("new=demo").resolve_model("demo").settings.alias == "new"
    with pytest.raises(UnknownModelError, match="served: new, old"):
        service("new=demo", "old=demo").resolve_model("demo")


def test_sequence_error_does_not_affect_other_sequences(
    client: TestClient, backend: FakeBackend
) -> None:
    until(lambda: ready(client))
    whole = client.post("/v1/render", json=BODY).json()["results"]
    lengths = {result["num_tokens"] for result in whole}
    assert len(lengths) == 2
    longest = max(lengths)
    backend.reward = lambda ids: (
        ScoreError("device_memory", "lower it") if len(ids) == longest else 1.0
    )
    results = client.post("/v1/score", json=BODY).json()["results"]
    assert sum("error" in result for result in results) in (1, 2)
    assert [r.get("reward") for r in results if "error" not in r] == [1.0] * (
        3 - sum("error" in r for r in results)
    )


def test_equal_rewards_share_a_rank(client: TestClient, backend: FakeBackend) -> None:
    until(lambda: ready(client))
    rewards = dict(zip("abcd", [0.5, 2.0, 0.5, -1.0], strict=True))
    backend.reward = lambda ids: rewards[letter_of[tuple(ids)]]
    asked = {"conversations": [conversation(letter, "x") for letter in "abcd"]}
    rendered = client.post("/v1/render", json=asked).json()["results"]
    letter_of = {tuple(r["input_ids"]): i for r, i in zip(rendered, "abcd", strict=True)}
    body = {"prompt": "x", "responses": list("abcd")}
    ranked = client.post("/v1/rank", json=body).json()
    assert [result["rank"] for result in ranked["results"]] == [2, 1, 2, 4]
    assert ranked["best_index"] == 1


def test_draining_rejects_new_requests_and_finishes_running_ones(backend: FakeBackend) -> None:
    async def scenario() -> None:
        settings = Settings.load()
        service = ScoringService([(settings.models[0], backend)], settings)
        app = create_app(service, settings)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            await until_ready(client)
            backend.gate = asyncio.Event()
            accepted = asyncio.create_task(client.post("/v1/score", json=BODY))
            await until_async(lambda: backend.batches)
            drained = asyncio.create_task(drain(app))
            await settle()
            assert not drained.done()
            refused = await client.post("/v1/score", json=BODY)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "overloaded"
            assert (await client.get("/ready")).status_code == 503
            assert not drained.done()
            backend.gate.set()
            assert (await accepted).status_code == 200
            await asyncio.wait_for(drained, PATIENCE_S)

    asyncio.run(scenario())


def test_ranks_are_computed_in_linear_time() -> None:
    rewards = [float(number % 7) for number in range(50)]
    best_first = sorted(rewards, reverse=True)
    assert results.compute_ranks(rewards) == {r: best_first.index(r) + 1 for r in rewards}
    compared = 0

    class Reward(float):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return float.__eq__(self, other)  # type: ignore[arg-type]

        __hash__ = float.__hash__

    assert len(results.compute_ranks([Reward(number) for number in range(5_000)])) == 5_000
    assert compared < 50_000
