"""Stub services, and a factory of clients that each test runs with both kinds of client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from blocking_client import Blocking
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
