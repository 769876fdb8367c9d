"""The carrier of a job to services at several addresses."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from job_service import Service
from waiting import PATIENCE_S

from rm_core import Reward, ScoreError
from rm_core.inputs.conversations import Messages
from serve.client import ServiceError
from serve.jobs.executors import connection
from serve.jobs.executors.service import _CONNECTIONS, ServiceExecutor
from serve.jobs.executors.shards import MAX_CONVERSATIONS, split_into_shards


def turns(answer: str, question: str = "2+2?") -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


MANY = [turns(f"answer {number}", f"question {number % 7}") for number in range(500)]


@pytest.fixture
def services() -> Iterator[list[Service]]:
    made = [Service(), Service()]
    yield made
    for service in made:
        service.stop()


def score(carrier: ServiceExecutor, calls: int = 1) -> list[Any]:
    try:
        carrier.resolve_identity()
        futures: list[Future[Any]] = [carrier.submit(MANY, "error") for _ in range(calls)]
        return [future.result(PATIENCE_S) for future in futures]
    finally:
        carrier.close()


def urls(services: list[Service], retry_s: float = PATIENCE_S) -> ServiceExecutor:
    return ServiceExecutor([s.url for s in services], None, api_key=None, retry_s=retry_s)


EXPECTED = [Reward(float(len(c[-1]["content"])), 3) for c in MANY]


def test_parts_hold_every_conversation_once_and_neighbours_together() -> None:
    parts = list(split_into_shards(MANY))
    assert sorted(place for part in parts for place in part) == list(range(500))
    assert max(map(len, parts)) <= MAX_CONVERSATIONS
    prompts = [MANY[place][0]["content"] for part in parts for place in part]
    assert sum(a != b for a, b in itertools.pairwise(prompts)) == 6
    assert list(split_into_shards([turns("x" * 3_000_000), turns("y" * 3_000_000)])) == [[0], [1]]


def test_what_no_json_can_carry_is_no_failure_of_a_service(services: list[Service]) -> None:
    carrier = urls(services)
    try:
        carrier.resolve_identity()
        bad = [{"role": "user", "content": "?", "weight": float("nan")}]
        (result,) = carrier.submit([bad], "error").result(PATIENCE_S).results
    finally:
        carrier.close()
    assert isinstance(result, ScoreError)
    assert "NaN" in result.message
    assert not any(service.posts for service in services)


def test_several_addresses_share_the_work(services: list[Service]) -> None:
    # The first post to each waits until the other has one too.
    for one, other in (services, services[::-1]):
        one.refuse = other.wait_for_post
    for scored in score(urls(services), calls=5):
        assert scored.results == EXPECTED
        assert scored.num_computed_tokens == 1_000
    assert all(service.posts for service in services)
    assert sum(map(sum, (service.posts for service in services))) == 2_500


def test_what_one_refuses_goes_to_the_other(
    services: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A connection that was refused rests for longer than a test may take.
    monkeypatch.setattr(connection, "_FIRST_REST_S", 3_600.0)
    monkeypatch.setattr(connection, "_LONGEST_REST_S", 3_600.0)
    services[0].refuse = lambda number: True
    services[1].refuse = services[0].wait_for_post
    for scored in score(urls(services), calls=3):
        assert scored.results == EXPECTED
    assert 1 <= len(services[0].posts) <= _CONNECTIONS


def test_one_that_goes_away_under_way(services: list[Service]) -> None:
    lost: list[threading.Thread] = []

    def leave(number: int) -> bool:
        if number == 2:
            lost.append(threading.Thread(target=services[0].stop))
            lost[0].start()
        return number > 2

    services[0].refuse = leave
    try:
        for scored in score(urls(services), calls=5):
            assert scored.results == EXPECTED
    finally:
        for thread in lost:
            thread.join()
        services[0] = Service()


def test_refused_by_all_for_long_enough(services: list[Service]) -> None:
    for service in services:
        service.refuse = lambda number: True
    with pytest.raises(ServiceError, match="503"):
        score(urls(services, retry_s=1))
    services[0].status = services[1].status = 400
    with pytest.raises(ServiceError, match="400"):
        score(urls(services, retry_s=60))


def test_mixed_models_are_refused(services: list[Service]) -> None:
    services[1].fingerprint["revision"] = "other"
    with pytest.raises(ServiceError, match="differ in fingerprint"):
        urls(services).resolve_identity()


def test_another_model_under_way_is_refused(services: list[Service]) -> None:
    carrier = urls(services[:1])
    carrier.resolve_identity()
    services[0].fingerprint["revision"] = "other"
    with pytest.raises(ServiceError, match="scores with another model than when the job began"):
        carrier.submit(MANY, "error").result(PATIENCE_S)
    carrier.close()


def test_an_address_that_is_away_at_the_start_is_left_to_later(services: list[Service]) -> None:
    away = ServiceExecutor(
        ["http://127.0.0.1:9", services[0].url], None, api_key=None, retry_s=PATIENCE_S
    )
    assert score(away)[0].results == EXPECTED
    nobody = ServiceExecutor(["http://127.0.0.1:9"], None, api_key=None, retry_s=0)
    with pytest.raises(ServiceError, match="is the service running there"):
        nobody.resolve_identity()


def test_a_model_that_is_loading_is_waited_for(
    services: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    services[0].state = "loading"
    with pytest.raises(ServiceError, match="is loading; wait until it is ready"):
        urls(services[:1], retry_s=0).resolve_identity()
    services[0].ready_at = services[0].num_asked + 2
    monkeypatch.setattr("serve.jobs.executors.service._ASK_AGAIN_S", 0.01)
    assert urls(services[:1]).resolve_identity()["encoding_sha256"] == "e"
    assert services[0].num_asked == services[0].ready_at  # asked no more once it is ready
    with pytest.raises(ServiceError, match="serves demo and 'nope' was asked for"):
        ServiceExecutor([services[0].url], "nope", api_key=None, retry_s=0).resolve_identity()
