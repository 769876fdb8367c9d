"""A service with known rewards, for tests of wire formats."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from compat_bodies import LONGER_REWARD, REWARD, TEXT
from fakes import FakeBackend, ready, serving
from fastapi.testclient import TestClient
from waiting import until


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    backend = FakeBackend()
    with serving(backend) as client:
        until(lambda: ready(client))
        backend.reward = lambda ids: float(len(ids))
        short = client.post("/tokenize", json={"prompt": TEXT}).json()["count"]
        backend.reward = lambda ids: REWARD if len(ids) == short else LONGER_REWARD
        yield client
