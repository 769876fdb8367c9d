"""The executor that scores with one or several services."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from job_service import Service
from waiting import PATIENCE_S

from rm_core import Reward, ScoreError
from rm_core.inputs.conversations import Messages
from rm_core.inputs.judge_items import JudgePair
from rm_core.inputs.step_items import StepItem
from serve.client import ServiceError
from serve.jobs.executors.service import _CONCURRENCY, ServiceExecutor


def turns(answer: str, question: str = "2+2?") -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


MANY = [turns(f"answer {number}", f"question {number % 7}") for number in range(500)]


@pytest.fixture
def services() -> Iterator[list[Service]]:
    result = [Service(), Service()]
    yield result
    for service in result:
        service.stop()


def score(executor: ServiceExecutor, calls: int = 1) -> list[Any]:
    try:
        executor.resolve_identity()
        futures: list[Future[Any]] = [executor.submit(MANY, "error") for _ in range(calls)]
        return [future.result(PATIENCE_S) for future in futures]
    finally:
        executor.close()


def create_executor(services: list[Service], retry_s: float = PATIENCE_S) -> ServiceExecutor:
    return ServiceExecutor([s.url for s in services], None, api_key=None, retry_s=retry_s)


EXPECTED = [Reward(float(len(c[-1]["content"])), 3) for c in MANY]


def test_conversation_that_is_not_json_is_error_without_request(services: list[Service]) -> None:
    executor = create_executor(services)
    try:
        executor.resolve_identity()
        bad = [{"role": "user", "content": "?", "weight": float("nan")}]
        (result,) = executor.submit([bad], "error").result(PATIENCE_S).results
    finally:
        executor.close()
    assert isinstance(result, ScoreError)
    assert "NaN" in result.message
    assert not any(service.requests for service in services)


def test_several_services_share_work(services: list[Service]) -> None:
    # The first request to each service waits until the other service has a request too.
    for one, other in (services, services[::-1]):
        one.refuse = other.wait_for_request
    for scored in score(create_executor(services), calls=5):
        assert scored.results == EXPECTED
        assert scored.num_computed_tokens == 1_000
    assert all(service.requests for service in services)
    assert sum(map(sum, (service.requests for service in services))) == 2_500


def test_shards_refused_by_one_service_go_to_other(
    services: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A service that refused rests for longer than a test may take.
    monkeypatch.setattr("serve.client.endpoints._INITIAL_BACKOFF_S", 3_600.0)
    monkeypatch.setattr("serve.client.endpoints._MAX_BACKOFF_S", 3_600.0)
    services[0].refuse = lambda number: True
    services[1].refuse = services[0].wait_for_request
    for scored in score(create_executor(services), calls=3):
        assert scored.results == EXPECTED
    # The first requests of three calls were on their way before the first refusal.
    assert 1 <= len(services[0].requests) <= 3 * 2 * _CONCURRENCY


def test_service_lost_during_job_is_replaced_by_other(services: list[Service]) -> None:
    stop_threads: list[threading.Thread] = []

    def leave(number: int) -> bool:
        if number == 2:
            stop_threads.append(threading.Thread(target=services[0].stop))
            stop_threads[0].start()
        return number > 2

    services[0].refuse = leave
    try:
        for scored in score(create_executor(services), calls=5):
            assert scored.results == EXPECTED
    finally:
        for thread in stop_threads:
            thread.join()
        services[0] = Service()


def test_job_fails_when_all_services_refuse(services: list[Service]) -> None:
    for service in services:
        service.refuse = lambda number: True
    with pytest.raises(ServiceError, match="503"):
        score(create_executor(services, retry_s=1))
    services[0].status = services[1].status = 400
    with pytest.raises(ServiceError, match="400"):
        score(create_executor(services, retry_s=60))


def test_services_with_different_models_are_refused(services: list[Service]) -> None:
    services[1].fingerprint["revision"] = "other"
    with pytest.raises(ServiceError, match="differ in fingerprint"):
        create_executor(services).resolve_identity()


def test_model_change_during_job_is_refused(services: list[Service]) -> None:
    executor = create_executor(services[:1])
    executor.resolve_identity()
    services[0].fingerprint["revision"] = "other"
    with pytest.raises(ServiceError, match="rewards of two models cannot be compared"):
        executor.submit(MANY, "error").result(PATIENCE_S)
    executor.close()


def test_unreachable_service_at_start_is_skipped(services: list[Service]) -> None:
    executor_with_dead_url = ServiceExecutor(
        ["http://127.0.0.1:9", services[0].url], None, api_key=None, retry_s=PATIENCE_S
    )
    assert score(executor_with_dead_url)[0].results == EXPECTED
    executor_without_service = ServiceExecutor(
        ["http://127.0.0.1:9"], None, api_key=None, retry_s=0
    )
    with pytest.raises(ServiceError, match="is the service running there"):
        executor_without_service.resolve_identity()


def test_any_service_that_responds_counts_tokens(services: list[Service]) -> None:
    for urls in ([services[0].url, "http://127.0.0.1:9"], ["http://127.0.0.1:9", services[0].url]):
        executor = ServiceExecutor(urls, None, api_key=None, retry_s=PATIENCE_S)
        assert executor.count_tokens(MANY, "error") == [3] * len(MANY)


def test_executor_waits_for_loading_model(
    services: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    services[0].state = "loading"
    with pytest.raises(ServiceError, match="is loading; wait until the model is ready"):
        create_executor(services[:1], retry_s=0).resolve_identity()
    services[0].ready_at = services[0].num_asked + 2
    monkeypatch.setattr("serve.jobs.executors.service._ASK_AGAIN_S", 0.01)
    assert create_executor(services[:1]).resolve_identity()["encoding_sha256"] == "e"
    assert services[0].num_asked == services[0].ready_at  # no request after the model is ready
    with pytest.raises(ServiceError, match="serves demo, not 'nope'"):
        ServiceExecutor([services[0].url], "nope", api_key=None, retry_s=0).resolve_identity()


def test_steps_and_pairs_are_scored_on_their_routes(services: list[Service]) -> None:
    prompt = [{"role": "user", "content": "2+2?"}]
    for service in services:
        service.kind = "step"
    executor = create_executor(services)
    model = executor.get_scoring_model(fetch=True)
    assert model is not None
    assert model.kind == "step"
    solutions = [StepItem(prompt, ("So", "x" * number)) for number in range(40)]
    scored = executor.submit(solutions, "error").result()
    assert [one.step_rewards for one in scored.results if isinstance(one, Reward)] == [
        (2 / 64, number / 64) for number in range(40)
    ]
    assert scored.num_computed_tokens == 3 * 40
    pairs = [JudgePair(prompt, "long", "x" * number) for number in range(40)]
    for sign, given in ((1, pairs), (-1, [pair.swap() for pair in pairs])):
        results = executor.submit(given, "error").result().results
        log_odds = [one.reward for one in results if isinstance(one, Reward)]
        assert log_odds == [sign * (4.0 - number) + 1 for number in range(40)]
    executor.close()
