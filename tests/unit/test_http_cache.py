"""The score cache in the routes: counters, hits, misses and invalidation."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fakes import INFO, FakeBackend, conversation, ready, serving
from fastapi.testclient import TestClient
from waiting import until

from rm_core import ScoreError
from rm_core.cache import ENTRY_BYTES

A, B, C = (conversation(text) for text in ("4", "five", "six and more"))


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(backend: FakeBackend) -> Iterator[TestClient]:
    with serving(backend) as client:
        until(lambda: ready(client))
        yield client


def score(client: TestClient, *conversations: Any) -> dict[str, Any]:
    answer = client.post("/v1/score", json={"conversations": conversations})
    assert answer.status_code == 200
    body: dict[str, Any] = answer.json()
    return body


def counters(client: TestClient) -> dict[str, int]:
    found: dict[str, int] = client.get("/info").json()["models"]["demo"]["score_cache"]
    return found


def num_sent(backend: FakeBackend) -> int:
    return sum(map(len, backend.batches))


def test_only_new_conversations_are_computed_and_all_are_counted(
    client: TestClient, backend: FakeBackend
) -> None:
    first = score(client, A, B, A)
    a, b, _ = (result["num_tokens"] for result in first["results"])
    assert first["usage"] == {
        "num_tokens": 2 * a + b,
        "num_computed_tokens": a + b,
        "num_cached_tokens": 0,
    }
    backend.reward = lambda ids: -float(len(ids))
    second = score(client, C, A, B, C, A)
    c = second["results"][0]["num_tokens"]
    assert [result["reward"] for result in second["results"]] == [-c, a, b, -c, a]
    assert second["usage"] == {
        "num_tokens": 2 * c + 2 * a + b,
        "num_computed_tokens": c,
        "num_cached_tokens": 2 * a + b,
    }
    third = score(client, C, B)
    assert [result["reward"] for result in third["results"]] == [-c, b]
    assert third["usage"]["num_computed_tokens"] == 0
    assert third["usage"]["num_cached_tokens"] == third["usage"]["num_tokens"] == b + c
    assert [len(batch) for batch in backend.batches] == [2, 1]  # no batch for the third request


def test_info_has_cache_counters(client: TestClient) -> None:
    assert counters(client) == {
        "hits": 0,
        "misses": 0,
        "evictions": 0,
        "entries": 0,
        "bytes": 0,
        "max_bytes": 256 * 2**20,
    }
    score(client, A, B, A)
    score(client, A, C)
    found = counters(client)
    assert (found["hits"], found["misses"], found["entries"]) == (1, 4, 3)
    assert found["bytes"] == 3 * ENTRY_BYTES


def test_compare_and_rank_use_cache(client: TestClient, backend: FakeBackend) -> None:
    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "five"}
    first = client.post("/v1/compare", json={"pairs": [pair]}).json()
    again = client.post("/v1/compare", json={"pairs": [pair, 7]}).json()
    assert again["results"][0] == first["results"][0]
    assert again["usage"]["num_cached_tokens"] == first["usage"]["num_tokens"] > 0
    assert again["usage"]["num_computed_tokens"] == 0
    ranked = client.post("/v1/rank", json={"prompt": "2+2?", "responses": ["4", "no"]}).json()
    known, new = (result["num_tokens"] for result in ranked["results"])
    assert ranked["usage"] == {
        "num_tokens": known + new,
        "num_computed_tokens": new,
        "num_cached_tokens": known,
    }
    assert num_sent(backend) == 3


def test_new_fingerprint_invalidates_cache(client: TestClient, backend: FakeBackend) -> None:
    assert score(client, A)["results"][0]["reward"] != 0.25
    backend.info = replace(INFO, revision="other")
    backend.reward = lambda _: 0.25
    assert score(client, B)["fingerprint"]["revision"] == "other"
    after = score(client, A)
    assert after["results"][0]["reward"] == 0.25
    assert after["fingerprint"]["revision"] == "other"
    assert after["usage"]["num_cached_tokens"] == 0
    assert score(client, A)["usage"]["num_cached_tokens"] > 0


def test_errors_are_not_cached(client: TestClient, backend: FakeBackend) -> None:
    backend.reward = lambda _: ScoreError("device_memory", "lower it")
    (failed,) = score(client, A)["results"]
    assert failed["error"]["code"] == "device_memory"
    backend.reward = lambda _: 0.5
    answer = score(client, A)
    assert answer["results"][0]["reward"] == 0.5
    assert answer["usage"]["num_cached_tokens"] == 0
    assert counters(client)["entries"] == 1


def test_cache_stays_within_cache_bytes(backend: FakeBackend) -> None:
    with serving(backend, cache_bytes=2 * ENTRY_BYTES) as client:
        until(lambda: ready(client))
        score(client, A)
        score(client, B)
        score(client, C)
        assert counters(client)["entries"] == 2
        assert counters(client)["evictions"] == 1
        assert score(client, C, B)["usage"]["num_computed_tokens"] == 0
        assert score(client, A)["usage"]["num_computed_tokens"] > 0


def test_cache_bytes_zero_disables_cache(backend: FakeBackend) -> None:
    with serving(backend, cache_bytes=0) as client:
        until(lambda: ready(client))
        for _ in range(2):
            usage = score(client, A, B)["usage"]
            assert usage["num_computed_tokens"] == usage["num_tokens"]
            assert usage["num_cached_tokens"] == 0
        assert counters(client) is None
        assert num_sent(backend) == 4


def test_request_log_has_cached_tokens(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    num_tokens = score(client, A)["usage"]["num_tokens"]
    with caplog.at_level(logging.INFO, "serve"):
        score(client, A)
    (line,) = [vars(record)["fields"] for record in caplog.records if record.msg == "request"]
    assert (line["tokens"], line["computed"], line["cached"]) == (num_tokens, 0, num_tokens)
