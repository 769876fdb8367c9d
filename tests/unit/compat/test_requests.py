"""Fields of a request in addition to its texts, and response headers about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from compat_bodies import REWARD, TEXT
from fakes import FakeBackend, ready, serving
from fastapi.testclient import TestClient
from waiting import until

from serve.api.app import create_app
from serve.config.settings import Settings
from serve.scoring.service import ScoringService


@contextlib.contextmanager
def serving_two(**chosen: Any) -> Iterator[TestClient]:
    settings = Settings.load(models=["one=demo", "two=demo"], **chosen)
    backends = [FakeBackend(), FakeBackend()]
    backends[1].reward = lambda ids: -float(len(ids))
    service = ScoringService(list(zip(settings.models, backends, strict=True)), settings)
    with TestClient(create_app(service, settings)) as client:
        until(lambda: ready(client))
        yield client


NAMELESS = [
    ("/classify", {"text": TEXT}, lambda a: a["embedding"][0]),
    ("/v1/embeddings", {"input": TEXT}, lambda a: a["data"][0]["embedding"][0]),
    ("/get_reward", {"query": TEXT}, lambda a: a["rewards"][0]),
    ("/predict", {"inputs": TEXT}, lambda a: a[0]["score"]),
    ("/v1/score/evaluation", {"messages": [TEXT]}, lambda a: a["scores"][0]),
    ("/remote_rm", {"prompt": "2+2?", "response": "4"}, lambda a: a),
]


@pytest.mark.parametrize(("path", "body", "read"), NAMELESS)
def test_query_parameter_selects_model(path: str, body: Any, read: Any) -> None:
    with serving_two() as client:
        assert client.post(path, json=body).status_code in (400, 422)
        one, two = (client.post(f"{path}?model={name}", json=body) for name in ("one", "two"))
        assert read(one.json()) == -read(two.json()) > 0
        assert two.headers["x-skyreward-model"] == "two"
        assert read(client.post(path, json=body | {"model": "two"}).json()) < 0
        assert client.post(path, json=body | {"model": "nope"}).status_code == 404


def test_unknown_model_name_is_ignored_with_one_served_model(
    client: TestClient,
) -> None:
    for path, body, read in NAMELESS:
        answer = client.post(path, json=body | {"model": "anything"})
        if path in ("/classify", "/v1/embeddings", "/v1/score/evaluation"):
            assert read(answer.json()) == REWARD
        else:
            assert answer.status_code == 404


def test_plain_text_is_scored_and_reported_in_header(client: TestClient) -> None:
    answer = client.post("/classify", json={"input": ["no template", TEXT]})
    assert answer.headers["x-skyreward-input"] == "text:no-template; text"


@pytest.mark.parametrize(
    ("alias", "escaped"), [("奖励", "\\u5956\\u52b1"), ("a\r\nb\x7f", "a\\x0d\\x0ab\\x7f")]
)
def test_alias_is_escaped_in_header(alias: str, escaped: str) -> None:
    with serving(FakeBackend(), alias=alias) as client:
        until(lambda: ready(client))
        answer = client.post("/classify", json={"input": TEXT})
        assert answer.status_code == 200
        assert answer.json()["model"] == alias
        assert answer.headers["x-skyreward-model"] == escaped


def test_vllm_accepts_any_integer_priority(client: TestClient) -> None:
    for priority in (-(2**63), 0, 2**63 - 1):
        answer = client.post("/classify", json={"input": TEXT, "priority": priority})
        assert answer.status_code == 200
