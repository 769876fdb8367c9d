"""Parses `/metrics`, and builds metrics with a series of every kind."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping

from fakes import INFO, FakeBackend, serving
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rm_core import BatchResult, Reward, ScoreError
from rm_core.cache import CacheStats
from serve.telemetry.logging import RequestContext
from serve.telemetry.metrics import Metrics, Snapshot
from serve.telemetry.model_states import ModelState

Series = tuple[str, frozenset[tuple[str, str]]]


def record_batch(metrics: Metrics, *, queue_durations_s: tuple[float, ...] = (0.02, 0.03)) -> None:
    """Record a batch of three conversations that fills 60 of 100 tokens."""
    metrics.record_batch(
        "m",
        BatchResult(
            (0.5, 1.5, -2.0),
            60,
            0.2,
            INFO.fingerprint,
            num_prefix_tokens=25,
            prefix_cache_bytes=4096,
        ),
        num_conversations=3,
        max_batch_tokens=100,
        queue_durations_s=queue_durations_s,
        elapsed_s=0.21,
    )


STATE = ModelState(
    ready=True,
    fingerprint={"revision": "r", "dtype": "float32"},
    num_replicas=2,
    queued_tokens=500,
    num_waiting=7,
    num_in_flight=1,
    num_tokenizer_differences=1,
    cache=CacheStats(hits=5, misses=6, evictions=1, entries=4, bytes=1440, max_bytes=10**6),
)


def series(name: str, **labels: str) -> Series:
    return name, frozenset(labels.items())


def rewards_of(model: str) -> Series:
    """Return the series that counts the rewards of a model."""
    return series("skyreward_rewards_bucket", model=model, le="+Inf")


def parse(text: str) -> dict[Series, float]:
    """Parse every series of a text exposition, with the parser of Prometheus' own library."""
    return {
        series(sample.name, **sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def read(snapshot: Snapshot) -> dict[Series, float]:
    return parse(generate_latest(snapshot).decode())


def moved(before: Mapping[Series, float], after: Mapping[Series, float]) -> dict[Series, float]:
    """Return the change of each series, without buckets and sums of histograms.

    The count of rewards is their bucket of `+Inf`.
    """
    ignored = ("_bucket", "_sum")
    return {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if value != before.get(name, 0)
        and (not name[0].endswith(ignored) or name == rewards_of(dict(name[1]).get("model", "")))
    }


def eventful() -> Metrics:
    """Return metrics of one model with a series of every kind."""
    metrics = Metrics()
    metrics.add_models({"m": "step", "j": "judge"}, lambda: {"m": STATE})
    context = RequestContext(
        "r",
        route="/v1/score",
        model="m",
        tokenize_s=0.01,
        code="overloaded",
        status=503,
        total_s=0.1,
    )
    metrics.record_request(context)
    results = [Reward(1.5, 30, truncated=True), ScoreError("device_memory", "lower it")]
    metrics.record_results("m", results, num_computed_tokens=20, num_cached_tokens=0)
    record_batch(metrics)
    metrics.record_retry("m", "replica_lost", 3)
    metrics.record_abandonment("m", 1)
    return metrics


@functools.cache
def known_labels() -> dict[str, set[str]]:
    """Return the labels of every series of the service, by name."""
    labels: dict[str, set[str]] = defaultdict(set)
    for family in eventful().snapshot():
        for sample in family.samples:
            labels[sample.name] |= {*sample.labels}
    with serving(FakeBackend()) as client:
        for metric in text_string_to_metric_families(client.get("/metrics").text):
            for parsed in metric.samples:
                labels[parsed.name] |= {*parsed.labels}
    labels["skyreward_model_info"] |= {"template_sha256", "attention", "version"}
    return dict(labels)
