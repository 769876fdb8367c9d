"""Each event changes exactly its own metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from fakes import FakeBackend, conversation, ready, serving
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_text import (
    STATE,
    Series,
    eventful,
    moved,
    parse,
    read,
    record_batch,
    rewards_of,
    series,
)
from waiting import until

from rm_core import Reward, ScoreError
from serve import __version__
from serve.api.middleware.request_log import InFlightRequests
from serve.telemetry.logging import RequestContext
from serve.telemetry.metrics import RETRY_REASONS, REWARD_BOUNDS, Metrics

BODY = {"conversations": [conversation("4")]}


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.add_models({"m": "classifier"}, lambda: {"m": STATE})
    return metrics


@pytest.fixture
def client() -> Iterator[TestClient]:
    with serving(FakeBackend()) as client:
        until(lambda: ready(client))
        yield client


def scrape(client: TestClient) -> dict[Series, float]:
    """Scrape the metrics, without those of the scrapes themselves."""
    return {
        name: value
        for name, value in parse(client.get("/metrics").text).items()
        if not {("route", "/metrics"), ("route", "/ready")} & name[1]
    }


def test_record_request(metrics: Metrics) -> None:
    before = read(metrics.snapshot())
    metrics.record_request(
        RequestContext(
            "r", route="/v1/score", model="m", tokenize_s=0.003, status=200, total_s=0.25
        )
    )
    after = read(metrics.snapshot())
    assert moved(before, after) == {
        series("skyreward_requests_total", route="/v1/score", status="200"): 1,
        series("skyreward_request_duration_seconds_count", route="/v1/score"): 1,
        series("skyreward_tokenize_seconds_count", model="m"): 1,
    }
    assert after[series("skyreward_tokenize_seconds_sum", model="m")] == 0.003
    duration = "skyreward_request_duration_seconds_bucket"
    assert after[series(duration, route="/v1/score", le="0.1")] == 0
    assert after[series(duration, route="/v1/score", le="0.25")] == 1


def test_record_rejected_request(metrics: Metrics) -> None:
    before = read(metrics.snapshot())
    metrics.record_request(
        RequestContext("r", route="/v1/score", code="overloaded", status=503, total_s=0.001)
    )
    assert moved(before, read(metrics.snapshot())) == {
        series("skyreward_requests_total", route="/v1/score", status="503"): 1,
        series("skyreward_request_duration_seconds_count", route="/v1/score"): 1,
        series("skyreward_request_errors_total", code="overloaded"): 1,
    }


def test_record_results(metrics: Metrics) -> None:
    before = read(metrics.snapshot())
    results = [
        Reward(2.0, 10),
        Reward(-3.5, 20, truncated=True),
        Reward(1.0, 5),
        ScoreError("conversation_too_long", "cut it"),
    ]
    metrics.record_results("m", results, num_computed_tokens=18, num_cached_tokens=5)
    assert moved(before, read(metrics.snapshot())) == {
        series("skyreward_conversations_total", model="m", outcome="scored"): 3,
        series("skyreward_conversations_total", model="m", outcome="error"): 1,
        series("skyreward_conversation_errors_total", model="m", code="conversation_too_long"): 1,
        series("skyreward_truncated_conversations_total", model="m"): 1,
        series("skyreward_tokens_total", model="m", kind="received"): 35,
        series("skyreward_tokens_total", model="m", kind="cached"): 5,
        series("skyreward_tokens_total", model="m", kind="shared"): 12,
        rewards_of("m"): 3,
        series("skyreward_reward_sum_total", model="m", sign="positive"): 3.0,
        series("skyreward_reward_sum_total", model="m", sign="negative"): 3.5,
    }


def test_record_batch(metrics: Metrics) -> None:
    before = read(metrics.snapshot())
    record_batch(metrics)
    after = read(metrics.snapshot())
    assert moved(before, after) == {
        series("skyreward_batches_total", model="m"): 1,
        series("skyreward_tokens_total", model="m", kind="computed"): 60,
        series("skyreward_prefix_cache_queries_total", model="m"): 85,
        series("skyreward_prefix_cache_hits_total", model="m"): 25,
        series("skyreward_prefix_cache_bytes", model="m"): 4096,
        series("skyreward_batch_fill_ratio_count", model="m"): 1,
        series("skyreward_batch_conversations_count", model="m"): 1,
        series("skyreward_queue_duration_seconds_count", model="m"): 2,
        series("skyreward_inference_seconds_count", model="m"): 1,
        series("skyreward_batch_round_trip_seconds_count", model="m"): 1,
    }
    assert after[series("skyreward_batch_fill_ratio_sum", model="m")] == 0.6
    assert after[series("skyreward_batch_conversations_sum", model="m")] == 3
    assert after[series("skyreward_inference_seconds_sum", model="m")] == 0.2
    record_batch(metrics, queue_durations_s=(0.5,))
    waits = read(metrics.snapshot())[series("skyreward_queue_duration_seconds_count", model="m")]
    assert waits == 3


def test_record_retry_and_abandonment(metrics: Metrics) -> None:
    for reason in RETRY_REASONS:
        before = read(metrics.snapshot())
        metrics.record_retry("m", reason, 4)
        assert moved(before, read(metrics.snapshot())) == {
            series("skyreward_retried_batches_total", model="m", reason=reason): 1,
            series("skyreward_retried_conversations_total", model="m"): 4,
        }
    before = read(metrics.snapshot())
    metrics.record_abandonment("m", 2)
    assert moved(before, read(metrics.snapshot())) == {
        series("skyreward_abandoned_conversations_total", model="m"): 2
    }


def test_requests_in_flight_are_read_at_scrape(metrics: Metrics) -> None:
    in_flight = InFlightRequests()
    metrics.watch_in_flight(lambda: in_flight.number)
    name = series("skyreward_requests_in_flight")
    with in_flight:
        with in_flight:
            assert read(metrics.snapshot())[name] == 2
        assert read(metrics.snapshot())[name] == 1
    assert read(metrics.snapshot())[name] == 0


def test_model_states_are_read_at_scrape(metrics: Metrics) -> None:
    found = read(metrics.snapshot())
    expected = {
        "model_ready": 1, "replicas": 2, "queue_tokens": 500, "queue_conversations": 7,
        "batches_in_flight": 1, "tokenizer_differences_total": 1,
        "cache_hits_total": 5, "cache_misses_total": 6,
        "cache_evictions_total": 1, "cache_entries": 4, "cache_bytes": 1440,
        "cache_max_bytes": 10**6,
    }  # fmt: skip
    for name, value in expected.items():
        assert found[series(f"skyreward_{name}", model="m")] == value
    assert found[series("skyreward_model_info", model="m", revision="r", dtype="float32")] == 1
    assert found[series("skyreward_build_info", version=__version__)] == 1


def test_rewards_are_counted_in_buckets(metrics: Metrics) -> None:
    rewards = [-1000.0, -60.0, -0.1, 0.0, 0.1, 12.4, 1000.0]
    metrics.record_results(
        "m", [Reward(r, 1) for r in rewards], num_computed_tokens=7, num_cached_tokens=0
    )
    found = read(metrics.snapshot())
    bounds = {
        float(dict(labels)["le"]): value
        for (name, labels), value in found.items()
        if name == "skyreward_rewards_bucket"
    }
    assert sorted(bounds) == [*REWARD_BOUNDS, math.inf]
    for bound, count in bounds.items():
        assert count == sum(reward <= bound for reward in rewards), bound


def test_series_of_model_exist_before_first_request(metrics: Metrics) -> None:
    found = read(metrics.snapshot())
    for name in ("batches_total", "truncated_conversations_total", "abandoned_conversations_total"):
        assert found[series(f"skyreward_{name}", model="m")] == 0
    assert found[rewards_of("m")] == 0
    for outcome in ("scored", "error"):
        assert found[series("skyreward_conversations_total", model="m", outcome=outcome)] == 0


def test_metric_names_help_texts_and_labels_follow_conventions() -> None:
    for family in eventful().snapshot():
        assert family.name.startswith("skyreward_")
        assert family.documentation[0].isupper() or family.documentation[0] == "1"
        assert family.documentation.endswith("."), family.name
        assert family.samples, family.name
        labels = {name for sample in family.samples for name in sample.labels}
        known = {
            "model", "route", "status", "code", "outcome", "kind", "reason", "sign", "le",
            "version", "revision", "dtype",
        }  # fmt: skip
        assert labels <= known


def test_request_is_counted_once(client: TestClient) -> None:
    before = scrape(client)
    num_tokens = client.post("/v1/score", json=BODY).json()["usage"]["num_tokens"]
    assert moved(before, scrape(client)) == {
        series("skyreward_requests_total", route="/v1/score", status="200"): 1,
        series("skyreward_request_duration_seconds_count", route="/v1/score"): 1,
        series("skyreward_tokenize_seconds_count", model="demo"): 1,
        series("skyreward_conversations_total", model="demo", outcome="scored"): 1,
        series("skyreward_tokens_total", model="demo", kind="received"): num_tokens,
        rewards_of("demo"): 1,
        series("skyreward_reward_sum_total", model="demo", sign="positive"): num_tokens,
        series("skyreward_cache_misses_total", model="demo"): 1,
        series("skyreward_cache_entries", model="demo"): 1,
        series("skyreward_cache_bytes", model="demo"): 360,
    } | {
        name: change
        for name, change in moved(before, scrape(client)).items()
        if name[0].startswith(
            (
                "skyreward_batch",
                "skyreward_inference",
                "skyreward_prefix_cache",
                "skyreward_queue_duration",
            )
        )
        or ("kind", "computed") in name[1]
    }
    before = scrape(client)
    client.post("/v1/score", json=BODY)
    again = moved(before, scrape(client))
    assert again[series("skyreward_cache_hits_total", model="demo")] == 1
    assert again[series("skyreward_tokens_total", model="demo", kind="cached")] == num_tokens
    assert series("skyreward_tokens_total", model="demo", kind="shared") not in again


def test_rejected_requests_are_counted_by_code(client: TestClient) -> None:
    for body, status, code in (
        ({"nothing": 1}, 400, "bad_request"),
        ({**BODY, "model": "other"}, 404, "model_not_found"),
    ):
        before = scrape(client)
        assert client.post("/v1/score", json=body).status_code == status
        assert moved(before, scrape(client)) == {
            series("skyreward_requests_total", route="/v1/score", status=str(status)): 1,
            series("skyreward_request_duration_seconds_count", route="/v1/score"): 1,
            series("skyreward_request_errors_total", code=code): 1,
        }


def test_unknown_path_has_label_unmatched(client: TestClient) -> None:
    before = scrape(client)
    client.get("/one")
    client.get("/another/secret")
    text = client.get("/metrics").text
    assert "secret" not in text
    counted = moved(before, scrape(client))
    assert counted[series("skyreward_requests_total", route="unmatched", status="404")] == 2


def test_metrics_in_text_and_openmetrics_format(client: TestClient) -> None:
    plain = client.get("/metrics")
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert parse(plain.text)[series("skyreward_gateways_up")] == 1
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    answer = client.get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name for family in text_string_to_metric_families(answer.text)}
    assert {"skyreward_requests", "skyreward_rewards", "skyreward_model_info"} <= families
