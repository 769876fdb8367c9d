"""The routes that put a model to sleep, wake it and reload it: answers, errors, who may call."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from compat_bodies import MESSAGES, TEXT
from fakes import FakeBackend, conversation, ready
from fastapi.testclient import TestClient
from middleware_harness import KEY, OTHER_KEY
from waiting import until

from rm_core import DeviceMemoryError
from serve.api.app import create_app
from serve.api.middleware.access import AdminWithoutKey
from serve.config.settings import Settings
from serve.errors import ReloadRefusedError
from serve.scoring.service import ScoringService

SCORE = {"conversations": [conversation("4")]}
ADMIN_KEY = "admin-admin-admin-admin"
BODIES: dict[str, Any] = {
    "/v1/score": SCORE,
    "/v1/compare": {"pairs": [{"prompt": "2+2?", "chosen": "4", "rejected": "5"}]},
    "/v1/rank": {"prompt": "2+2?", "responses": ["4", "5"]},
    "/classify": {"input": [TEXT]},
    "/classify?model=demo": {"text": TEXT},
    "/pooling": {"messages": MESSAGES},
    "/score": {"text_1": "2+2?", "text_2": "4"},
    "/rerank": {"query": "2+2?", "documents": ["4"]},
    "/rerank?model=demo": {"query": "2+2?", "texts": ["4"]},
    "/predict": {"inputs": TEXT},
    "/v1/embeddings": {"input": TEXT},
    "/get_reward": {"query": [TEXT], "prompts": ["2+2?"]},
    "/remote_rm": {"prompt": "2+2?", "response": "4"},
    "/v1/score/evaluation": {"model": "demo", "messages": [TEXT]},
    "/v1/chat/completions": {"model": "demo", "messages": MESSAGES},
}
SLEEP, WAKE, RELOAD = (f"/v1/models/demo/{name}" for name in ("sleep", "wake", "reload"))


@contextlib.contextmanager
def service_of(
    backend: FakeBackend,
    *,
    peer: str = "127.0.0.1",
    without_key: AdminWithoutKey | None = None,
    aliases: tuple[str, ...] = ("demo",),
    **settings: Any,
) -> Iterator[TestClient]:
    models = [{"name": "demo", "alias": alias} for alias in aliases]
    chosen = Settings.load(models=models, **settings)
    service = ScoringService([(model, backend) for model in chosen.models], chosen)
    app = create_app(service, chosen, admin_without_key=without_key)
    with TestClient(app, raise_server_exceptions=False, client=(peer, 50_000)) as client:
        until(lambda: ready(client))
        yield client


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(backend: FakeBackend) -> Iterator[TestClient]:
    with service_of(backend) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_sleeping_model_refuses_until_it_is_woken(client: TestClient, backend: FakeBackend) -> None:
    before = client.post("/v1/score", json=SCORE).json()
    asleep = client.post(SLEEP)
    assert asleep.status_code == 200
    body = asleep.json()
    assert (body["state"], body["sleep_level"], body["freed_bytes"]) == ("asleep", 1, 1234)
    assert body["fingerprint"] == before["fingerprint"]
    assert body["seconds"] >= 0
    refused = client.post("/v1/score", json=SCORE)
    assert code(refused) == (503, "model_asleep")
    assert int(refused.headers["retry-after"]) >= 1
    assert client.post(SLEEP, json={"level": 2}).json()["sleep_level"] == 2
    awake = client.post(WAKE, json={}).json()
    assert (awake["state"], awake["sleep_level"]) == ("ready", 0)
    assert client.post("/v1/score", json=SCORE).json()["results"] == before["results"]
    assert [(c.action, c.level) for c in backend.commands[:3]] == [
        ("sleep", 1), ("sleep", 2), ("wake", 1)
    ]  # fmt: skip


def test_status_routes_and_metrics_show_sleep_and_version(client: TestClient) -> None:
    client.post(SLEEP, json={"level": 2})
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["state"], model["sleep_level"]) == ("asleep", 2)
    state = client.get("/ready")
    assert state.status_code == 200
    assert state.json()["models"]["demo"] == {"state": "asleep", "sleep_level": 2}
    assert client.get("/info").json()["models"]["demo"]["sleep_level"] == 2
    assert 'skyreward_model_asleep{model="demo"} 2.0' in client.get("/metrics").text
    client.post(WAKE)
    client.post(RELOAD, json={"source": "/", "version": "step-7"})
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["state"], model["fingerprint"]["version"]) == ("ready", "step-7")
    metrics = client.get("/metrics").text
    assert 'skyreward_model_asleep{model="demo"} 0.0' in metrics
    assert 'version="step-7"' in metrics
    assert 'skyreward_model_reloads_total{model="demo",outcome="done"} 1.0' in metrics


def test_reload_answers_with_new_fingerprint(
    client: TestClient, backend: FakeBackend, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint-100"
    folder.mkdir()
    answer = client.post(RELOAD, json={"source": str(folder)})
    assert answer.status_code == 200
    assert answer.json()["fingerprint"]["version"] == "checkpoint-100"
    scored = client.post("/v1/score", json=SCORE).json()
    assert scored["fingerprint"] == answer.json()["fingerprint"]
    assert [command.action for command in backend.commands] == ["stage", "switch"]


def test_refused_reload_is_409_and_old_weights_serve(
    client: TestClient, backend: FakeBackend
) -> None:
    backend.control_failure = ReloadRefusedError("a shard is missing")
    before = client.post("/v1/score", json=SCORE).json()["fingerprint"]
    answer = client.post(RELOAD, json={"source": "/"})
    assert code(answer) == (409, "reload_refused")
    assert "a shard is missing" in answer.json()["error"]["message"]
    assert [command.action for command in backend.commands] == ["stage", "discard"]
    assert client.post("/v1/score", json=SCORE).json()["fingerprint"] == before
    backend.control_failure = DeviceMemoryError("too little memory")
    assert code(client.post(RELOAD, json={"source": "/"})) == (500, "device_memory")
    metrics = client.get("/metrics").text
    assert 'skyreward_model_reloads_total{model="demo",outcome="refused"} 1.0' in metrics
    assert 'skyreward_model_reloads_total{model="demo",outcome="failed"} 1.0' in metrics


def test_sleeping_model_is_not_reloaded(client: TestClient) -> None:
    client.post(SLEEP)
    assert code(client.post(RELOAD, json={"source": "/"})) == (503, "model_asleep")


@pytest.mark.parametrize(
    ("route", "body", "expected"),
    [
        ("/v1/models/other/sleep", {}, (404, "model_not_found")),
        ("/v1/models/a/b/wake", {}, (404, "model_not_found")),
        (SLEEP, {"level": 3}, (400, "bad_request")),
        (SLEEP, {"depth": 1}, (400, "bad_request")),
        (WAKE, [], (400, "bad_request")),
        (RELOAD, None, (400, "bad_request")),
        (RELOAD, {"source": ""}, (400, "bad_request")),
        (RELOAD, {"source": "/", "version": "v" * 201}, (400, "bad_request")),
        (RELOAD, {"source": "x" * 70_000}, (413, "body_too_large")),
    ],
)
def test_bad_requests_are_explained(
    client: TestClient, route: str, body: Any, expected: tuple[int, str]
) -> None:
    assert code(client.post(route, json=body)) == expected


def test_checkpoint_that_does_not_exist_is_refused(client: TestClient, tmp_path: Path) -> None:
    answer = client.post(RELOAD, json={"source": str(tmp_path / "none")})
    assert code(answer) == (409, "reload_refused")


@pytest.mark.parametrize("version", [None, "a\r\nset-cookie: b"])
def test_version_that_would_break_headers_is_refused(
    client: TestClient, tmp_path: Path, version: str | None
) -> None:
    folder = tmp_path / ("checkpoint" if version else "check\npoint")
    folder.mkdir()
    answer = client.post(RELOAD, json={"source": str(folder), "version": version})
    assert code(answer) == (409, "reload_refused")
    assert "give another `version`" in answer.json()["error"]["message"]


def test_routes_do_not_count_as_scoring_requests(backend: FakeBackend) -> None:
    with service_of(backend, max_requests=1, max_queued_tokens=1) as client:
        client.post(SLEEP)
        metrics = client.get("/metrics").text
    assert 'route="/v1/models/{alias}/sleep",status="200"' in metrics
    assert "x-total-time" not in client.post(SLEEP).headers


@pytest.mark.parametrize(("path", "body"), sorted(BODIES.items()))
def test_every_wire_format_answers_503_while_asleep(
    client: TestClient, path: str, body: Any
) -> None:
    client.post(SLEEP)
    answer = client.post(path, json=body)
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert "asleep" in answer.text


# Who may call


def test_without_admin_keys_only_this_machine_may_call(backend: FakeBackend) -> None:
    with service_of(backend, peer="192.0.2.7", host="0.0.0.0") as client:
        refused = client.post(SLEEP)
        assert code(refused) == (403, "permission_denied")
        assert "another machine" in refused.json()["error"]["message"]
        assert client.post("/sleep").status_code == 403
        assert client.post("/v1/score", json=SCORE).status_code == 200
    assert backend.commands == []


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"X-Real-IP": "127.0.0.1"},
        {"Via": "1.1 proxy"},
        {"Origin": "https://example.org"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},
        {"Host": "rebound.example.org", "Origin": "http://rebound.example.org"},
    ],
)
@pytest.mark.parametrize("without_key", ["loopback", "all"])
def test_proxies_and_web_pages_are_refused(
    backend: FakeBackend, headers: dict[str, str], without_key: AdminWithoutKey
) -> None:
    with service_of(backend, without_key=without_key, allowed_hosts="*") as client:
        assert code(client.post(SLEEP, headers=headers)) == (403, "permission_denied")
        assert client.post("/sleep?level=1", headers=headers).status_code == 403
    assert backend.commands == []


def test_page_of_the_service_may_call(client: TestClient) -> None:
    assert client.post(SLEEP, headers={"Origin": "http://localhost"}).status_code == 200


def test_where_the_peer_is_hidden_the_caller_decides(backend: FakeBackend) -> None:
    with service_of(backend, peer="192.0.2.7", without_key="all") as client:
        assert client.post(SLEEP).status_code == 200
    with service_of(backend, without_key="none") as client:
        assert code(client.post(SLEEP)) == (401, "invalid_api_key")


def test_admin_keys_are_required_and_score_too(
    backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    keys = {"api_keys": [KEY], "admin_api_keys": [ADMIN_KEY]}
    with service_of(backend, peer="192.0.2.7", **keys) as client:
        assert code(client.post(SLEEP)) == (401, "invalid_api_key")
        assert code(client.post(SLEEP, headers=bearer(OTHER_KEY))) == (401, "invalid_api_key")
        assert code(client.post(SLEEP, headers=bearer(KEY))) == (403, "permission_denied")
        for path in ("/sleep", "/wake_up", "/release_memory_occupation"):
            assert client.post(path, headers=bearer(KEY)).status_code == 403
        assert backend.commands == []
        assert client.post("/v1/score", json=SCORE, headers=bearer(ADMIN_KEY)).status_code == 200
        forwarded = bearer(ADMIN_KEY) | {"X-Forwarded-For": "192.0.2.9"}
        assert client.post(SLEEP, headers=forwarded).status_code == 200
        info = client.get("/info", headers=bearer(KEY))
    assert info.json()["settings"]["admin_api_keys"] == ["**********"]
    assert ADMIN_KEY not in info.text
    assert ADMIN_KEY not in caplog.text


def test_local_client_needs_a_key_where_scoring_does(backend: FakeBackend) -> None:
    with service_of(backend, api_keys=[KEY]) as client:
        assert code(client.post(SLEEP)) == (401, "invalid_api_key")
        assert client.post(SLEEP, headers=bearer(KEY)).status_code == 200


def test_service_without_keys_stays_open_for_scoring(backend: FakeBackend) -> None:
    with service_of(backend, admin_api_keys=[ADMIN_KEY]) as client:
        assert client.post("/v1/score", json=SCORE).status_code == 200
        assert code(client.post(SLEEP)) == (401, "invalid_api_key")
        assert client.post(SLEEP, headers=bearer(ADMIN_KEY)).status_code == 200


def test_admin_keys_of_a_file(backend: FakeBackend, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# trainer\n{ADMIN_KEY}\n")
    with service_of(backend, admin_api_keys_file=str(file)) as client:
        assert client.post(SLEEP, headers=bearer(ADMIN_KEY)).status_code == 200
        assert client.get("/info").json()["settings"]["admin_api_keys_file"] == "keys"


# Other services' routes


def test_vllm_routes(client: TestClient, backend: FakeBackend) -> None:
    assert client.get("/is_sleeping").json() == {"is_sleeping": False}
    asleep = client.post("/sleep?level=2")
    assert (asleep.status_code, asleep.content) == (200, b"")
    assert client.get("/is_sleeping").json() == {"is_sleeping": True}
    assert client.post("/wake_up?tags=weights").status_code == 200
    assert client.post("/wake_up?tags=kv_cache").status_code == 200
    assert client.get("/is_sleeping?model=demo").json() == {"is_sleeping": False}
    assert backend.commands[0].level == 2
    wrong = client.post("/sleep?level=5")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, 400)
    assert "when_asleep" in client.post("/sleep?mode=keep").json()["error"]["message"]


def test_sglang_routes(client: TestClient, backend: FakeBackend) -> None:
    released = client.post("/release_memory_occupation", json={"tags": ["kv_cache", "weights"]})
    assert (released.status_code, released.json()) == (200, None)
    assert client.post("/release_memory_occupation", json={}).status_code == 200
    assert client.get("/v1/models").json()["data"][0]["state"] == "asleep"
    assert client.post("/resume_memory_occupation", json={"tags": None}).json() is None
    assert client.get("/get_weight_version").json() == {"weight_version": "default"}
    body = {"model_path": "/", "weight_version": "step-8", "flush_cache": True}
    updated = client.post("/update_weights_from_disk", json=body)
    assert updated.status_code == 200
    assert updated.json()["success"] is True
    assert client.get("/get_weight_version").json() == {"weight_version": "step-8"}
    scored = client.post("/classify", json={"text": "<|im_start|>user\n2<|im_end|>\n"}).json()
    assert scored["meta_info"]["weight_version"] == "step-8"
    backend.control_failure = ReloadRefusedError("NaN in a tensor")
    refused = client.post("/update_weights_from_disk", json=body)
    assert (refused.status_code, refused.json()) == (
        400, {"success": False, "message": "NaN in a tensor"}
    )  # fmt: skip
    wrong = client.post("/update_weights_from_disk", json=body | {"load_format": "dummy"})
    assert (wrong.status_code, "safetensors" in wrong.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize(
    "path",
    ["/update_weights_from_tensor", "/update_weights_from_distributed", "/update_weights"],
)
def test_weights_over_the_network_are_refused_with_the_reason(
    client: TestClient, path: str
) -> None:
    refused = client.post(path, json={"names": []})
    assert refused.status_code == 400
    assert "update_weights_from_disk" in refused.text


def test_several_models_sleep_together_and_reload_one_by_one(backend: FakeBackend) -> None:
    with service_of(backend, aliases=("one", "two")) as client:
        assert client.post("/sleep").status_code == 200
        assert [m["state"] for m in client.get("/v1/models").json()["data"]] == ["asleep"] * 2
        client.post("/wake_up")
        client.post("/sleep?model=two")
        assert client.get("/is_sleeping").json() == {"is_sleeping": False}
        assert client.get("/is_sleeping?model=two").json() == {"is_sleeping": True}
        body = {"model_path": "/"}
        assert client.post("/update_weights_from_disk", json=body).status_code == 400
        assert client.post("/update_weights_from_disk?model=one", json=body).status_code == 200
