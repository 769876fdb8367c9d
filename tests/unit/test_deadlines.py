"""Deadlines of requests."""

from __future__ import annotations

from functools import partial

import pytest
from fakes import FakeBackend, conversation, ready
from fastapi.testclient import TestClient
from middleware_harness import create_harness
from waiting import MovableLoop, advance, settle, until

from serve.api.app import create_app
from serve.config.settings import Settings
from serve.scoring.service import ScoringService

ON_A_MOVABLE_LOOP = {"loop_factory": MovableLoop}


def test_passed_deadline_is_408_and_cancels_request() -> None:
    harness = create_harness()
    harness.on_wait = partial(advance, 1_001)
    with TestClient(harness.app, backend_options=ON_A_MOVABLE_LOOP) as client:
        headers = {"X-Request-Timeout-Seconds": "1000"}
        answer = client.post("/wait", json="a", headers=headers)
        assert answer.status_code == 408
        assert answer.json()["error"]["code"] == "deadline_exceeded"
        assert harness.cancelled == ['"a"']
        assert (harness.admission.num_running, harness.admission.num_bytes) == (0, 0)


def test_request_timeout_setting_is_default_deadline() -> None:
    harness = create_harness(request_timeout_s=1_000)
    harness.on_wait = partial(advance, 1_001)

    async def pass_the_deadline() -> None:
        advance(2_001)
        await settle()

    harness.between_chunks = pass_the_deadline
    with TestClient(harness.app, backend_options=ON_A_MOVABLE_LOOP) as client:
        assert client.post("/wait", json="a").status_code == 408
        # A response that has begun is completed.
        slow = client.post("/slowly", json={}, headers={"X-Request-Timeout-Seconds": "2000"})
        assert (slow.status_code, slow.text) == (200, "one two three")


def test_deadline_cancels_scoring() -> None:
    backend = FakeBackend()
    settings = Settings.load()
    app = create_app(ScoringService([(settings.models[0], backend)], settings), settings)
    with TestClient(app) as client:
        until(lambda: ready(client))
        backend.delay_s = 3
        body = {"conversations": [conversation("4")]}
        headers = {"X-Request-Timeout-Seconds": "0.3", "X-Request-Id": "late"}
        answer = client.post("/v1/score", json=body, headers=headers)
        assert answer.status_code == 408
        assert answer.headers["x-request-id"] == "late"
        backend.delay_s = 0
        assert client.post("/v1/score", json=body).status_code == 200


@pytest.mark.parametrize("name", ["X-Request-Timeout-Seconds", "X-Skyreward-Timeout-Seconds"])
def test_deadline_is_read_under_the_name_that_serves_proxy_sees(name: str) -> None:
    """`StripHeadersMiddleware` hides the public name from Ray Serve."""
    with TestClient(create_harness().app) as client:
        answer = client.post("/size", json={}, headers={name: "soon"})
    assert answer.status_code == 400
    assert "X-Request-Timeout-Seconds is 'soon'" in answer.json()["error"]["message"]
