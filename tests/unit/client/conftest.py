"""Stub services, and a factory of clients that each test runs with both kinds of client.

Tests of step models and judges have the application itself behind the stub service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from blocking_client import Blocking
from checkpoints import SPECS, build_checkpoint
from fastapi.testclient import TestClient
from kinds import build_judge, build_step_model, serving_models
from stub_service import StubService, stub_service

from serve.client import ScoringClient

MAKERS = ["sync", "async"]


@pytest.fixture
def stub() -> Iterator[StubService]:
    with stub_service() as service:
        yield service


@pytest.fixture
def other() -> Iterator[StubService]:
    with stub_service() as service:
        yield service


@pytest.fixture(scope="package")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The application with a step model (`prm`), a judge (`judge`) and a classifier (`rm`)."""
    root = tmp_path_factory.mktemp("kinds")
    judge = {"name": str(build_judge(root / "judge")), "kind": "judge"}
    classifier = build_checkpoint(root / "rm", SPECS["llama-v0.2"])
    step_model = build_step_model(root / "prm")
    options = {"policy_template": "chatml"}
    with serving_models(options, prm=step_model, judge=judge, rm=classifier) as client:
        yield client


@pytest.fixture
def service(app: TestClient) -> Iterator[StubService]:
    """The application over HTTP."""
    with stub_service(app) as service:
        yield service


@pytest.fixture(params=MAKERS)
def make_client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    clients: list[Any] = []

    def make(*args: Any, **options: Any) -> Any:
        clients.append((ScoringClient if request.param == "sync" else Blocking)(*args, **options))
        return clients[-1]

    yield make
    for client in clients:
        if isinstance(client, Blocking):
            client.end()
        else:
            client.close()
