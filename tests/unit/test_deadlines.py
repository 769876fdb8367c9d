"""What becomes of the work of a request that is late."""

from __future__ import annotations

from fakes import FakeBackend, conversation, ready, until
from fastapi.testclient import TestClient
from guarded import guarded

from serve.http import create_app
from serve.service import ScoringService
from serve.settings import Settings


def test_a_deadline_that_passes_is_408_and_the_work_is_given_up() -> None:
    seen = guarded()
    with TestClient(seen.app) as client:
        headers = {"X-Request-Timeout-Seconds": "0.3"}
        answer = client.post("/wait", json="a", headers=headers)
        assert answer.status_code == 408
        assert answer.json()["error"]["code"] == "deadline_exceeded"
        assert seen.cancelled == ['"a"']
        assert (seen.admission.num_running, seen.admission.num_bytes) == (0, 0)


def test_the_setting_is_the_deadline_of_those_that_bring_none() -> None:
    with TestClient(guarded(request_timeout_s=0.2).app) as client:
        assert client.post("/wait", json="a").status_code == 408
        slow = client.post("/slowly", json={}, headers={"X-Request-Timeout-Seconds": "1"})
        assert (slow.status_code, slow.text) == (200, "one two three")


def test_a_deadline_cancels_the_work_of_the_service_itself() -> None:
    backend = FakeBackend()
    settings = Settings.of()
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
