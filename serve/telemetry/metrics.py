"""The metrics at `/metrics`: name, labels and meaning of each, in one class.

Names begin with `skyreward_`; counters end in `_total` and durations in `_seconds`. Label values
come from the service (model aliases, route templates, its own codes), never from a request. All
metrics are those of one process since its start.

Every gateway counts its own requests. The series of all gateways are exported side by side,
distinguished by the label `gateway`, and are not summed: a sum drops when a gateway dies.
Prometheus treats every drop of a counter as a restart from zero, and would report everything that
the other gateways ever counted as an increase of that moment. `sum by (...) (rate(...))` sums them
in the right order.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal, TypeAlias, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, Metric

from rm_core import BatchResult, Reward, ScoreError
from rm_core.config import Kind
from serve import __version__
from serve.errors import RetryReason
from serve.telemetry.logging import RequestContext
from serve.telemetry.model_states import NAMESPACE, PREFIX, ModelStateCollector, ReadStates

RETRY_REASONS = get_args(RetryReason)
GATEWAY_LABEL = "gateway"
ReloadOutcome: TypeAlias = Literal["done", "refused", "failed"]

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600,
)  # fmt: skip
# A conversation longer than the token budget is a batch alone, with a fill ratio above 1.
_FILL = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1, 1.5, 2, 4)
_CONVERSATIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
# Raw logits: most lie between -30 and 30, and close decisions lie near 0.
_POSITIVE_BOUNDS = (0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12.5, 15, 17.5, 20, 25, 30, 40, 50, 60)
_STEP_BOUNDS = (0.01, 0.05, *(round(0.1 * i, 1) for i in range(1, 10)), 0.95, 0.99, 1.0)
REWARD_BOUNDS = (*(-bound for bound in reversed(_POSITIVE_BOUNDS)), 0.0, *_POSITIVE_BOUNDS)


class Metrics:
    """Counters, histograms and gauges of one process, in a separate registry."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        counter = partial(Counter, namespace=NAMESPACE, registry=registry)
        gauge = partial(Gauge, namespace=NAMESPACE, registry=registry)
        histogram = partial(Histogram, namespace=NAMESPACE, registry=registry)

        self._requests = counter(
            "requests",
            "HTTP requests, by route and status; 499 means that the client disconnected.",
            ["route", "status"],
        )
        self._request_duration = histogram(
            "request_duration_seconds",
            "Time from the arrival of a request to the end of its response, in seconds.",
            ["route"],
            buckets=_SECONDS,
        )
        self._in_flight = gauge("requests_in_flight", "Scoring requests that are being processed.")
        self._errors = counter(
            "request_errors", "HTTP requests that failed as a whole, by error code.", ["code"]
        )
        self._tokenize = histogram(
            "tokenize_seconds",
            "Time to render and tokenize the conversations of a request, in seconds.",
            ["model"],
            buckets=_SECONDS,
        )

        self._conversations = counter(
            "conversations",
            "Conversations processed, by outcome: scored or error.",
            ["model", "outcome"],
        )
        self._conversation_errors = counter(
            "conversation_errors", "Conversations that failed, by error code.", ["model", "code"]
        )
        self._truncated_conversations = counter(
            "truncated_conversations", "Conversations truncated before scoring.", ["model"]
        )
        self._tokens = counter(
            "tokens",
            "Tokens by kind. received: tokens of all scored conversations; computed: tokens that "
            "went through the model; cached: tokens saved because the reward was cached; shared: "
            "tokens saved because several conversations share them, in one batch or through the "
            "prefix cache.",
            ["model", "kind"],
        )
        self._rewards = RewardHistogram("reward", "Raw rewards, by model.")
        self._step_rewards = RewardHistogram(
            "step_reward", "Rewards of the steps of solutions, by step model.", _STEP_BOUNDS
        )
        self._judge_margins = RewardHistogram(
            "judge_margin", "Log-odds of the first of two answers in one order, by judge."
        )
        for rewards in (self._rewards, self._step_rewards, self._judge_margins):
            registry.register(rewards)

        self._batches = counter("batches", "Batches scored.", ["model"])
        self._batch_fill = histogram(
            "batch_fill_ratio",
            "Computed tokens of a batch divided by the token budget.",
            ["model"],
            buckets=_FILL,
        )
        self._batch_conversations = histogram(
            "batch_conversations", "Conversations in a batch.", ["model"], buckets=_CONVERSATIONS
        )
        self._prefix_cache_queries = counter(
            "prefix_cache_queries", "Tokens looked up in the replicas' prefix caches.", ["model"]
        )
        self._prefix_cache_hits = counter(
            "prefix_cache_hits",
            "Tokens found in the replicas' prefix caches, which were not computed again.",
            ["model"],
        )
        self._prefix_cache_bytes = gauge(
            "prefix_cache_bytes",
            "Memory in use in the prefix cache of the replica that scored last, in bytes.",
            ["model"],
        )
        self._queue_duration = histogram(
            "queue_duration_seconds",
            "Time that a conversation spent queued before dispatch, in seconds.",
            ["model"],
            buckets=_SECONDS,
        )
        self._inference = histogram(
            "inference_seconds",
            "Time of the forward pass of a batch, in seconds.",
            ["model"],
            buckets=_SECONDS,
        )
        self._round_trip = histogram(
            "batch_round_trip_seconds",
            "Time from the dispatch of a batch to its rewards in the gateway, in seconds.",
            ["model"],
            buckets=_SECONDS,
        )
        self._retries = counter(
            "retried_batches", "Batches sent again, by reason.", ["model", "reason"]
        )
        self._retried_conversations = counter(
            "retried_conversations", "Conversations in batches that were sent again.", ["model"]
        )
        self._abandoned_conversations = counter(
            "abandoned_conversations",
            "Conversations abandoned after crashing two replicas.",
            ["model"],
        )
        self._reloads = counter(
            "model_reloads",
            "Replacements of a model's weights, by outcome: done, refused or failed.",
            ["model", "outcome"],
        )
        gauge("build_info", "Always 1; the label is the version.", ["version"]).labels(
            __version__
        ).set(1)

    def add_models(self, models: Mapping[str, Kind], read: ReadStates) -> None:
        """Export all series of models at once: a counter that appears late hides its first event.

        `read` is called once per scrape.
        """
        for model, kind in models.items():
            for outcome in ("scored", "error"):
                self._conversations.labels(model, outcome)
            for tokens in ("received", "computed", "cached", "shared"):
                self._tokens.labels(model, tokens)
            for result in get_args(ReloadOutcome):
                self._reloads.labels(model, result)
            for reason in RETRY_REASONS:
                self._retries.labels(model, reason)
            for metric in (
                self._truncated_conversations,
                self._retried_conversations,
                self._abandoned_conversations,
                self._batches,
                self._prefix_cache_queries,
                self._prefix_cache_hits,
                self._prefix_cache_bytes,
            ):
                metric.labels(model)
            (self._judge_margins if kind == "judge" else self._rewards).add_model(model)
            if kind == "step":
                self._step_rewards.add_model(model)
        self._registry.register(ModelStateCollector(read))

    def watch_in_flight(self, read: Callable[[], int]) -> None:
        """Export the number of scoring requests in flight, which `read` returns at each scrape."""
        self._in_flight.set_function(read)

    def record_request(self, context: RequestContext) -> None:
        """Count a finished request."""
        self._requests.labels(context.route, str(context.status)).inc()
        self._request_duration.labels(context.route).observe(context.total_s)
        if context.code is not None:
            self._errors.labels(context.code).inc()
        if context.model is not None and context.tokenize_s > 0:
            self._tokenize.labels(context.model).observe(context.tokenize_s)

    def record_results(
        self,
        model: str,
        results: Iterable[Reward | ScoreError],
        kind: Kind = "classifier",
        *,
        num_computed_tokens: int,
        num_cached_tokens: int,
    ) -> None:
        """Count the conversations of a scored request, and its share of the tokens of batches."""
        rewards: list[float] = []
        step_rewards: list[float] = []
        num_tokens = num_truncated = num_errors = 0
        for result in results:
            if isinstance(result, ScoreError):
                num_errors += 1
                self._conversation_errors.labels(model, result.code).inc()
            else:
                rewards.append(result.reward)
                if kind == "step":
                    step_rewards += result.step_rewards
                num_tokens += result.num_tokens
                num_truncated += result.truncated
        (self._judge_margins if kind == "judge" else self._rewards).observe(model, rewards)
        if step_rewards:
            self._step_rewards.observe(model, step_rewards)
        self._conversations.labels(model, "scored").inc(len(rewards))
        self._conversations.labels(model, "error").inc(num_errors)
        self._truncated_conversations.labels(model).inc(num_truncated)
        self._tokens.labels(model, "received").inc(num_tokens)
        self._tokens.labels(model, "cached").inc(num_cached_tokens)
        # Negative where conversations were computed and then had no reward.
        shared = max(0, num_tokens - num_cached_tokens - num_computed_tokens)
        self._tokens.labels(model, "shared").inc(shared)

    def record_batch(
        self,
        model: str,
        result: BatchResult,
        *,
        num_conversations: int,
        max_batch_tokens: int,
        queue_durations_s: Iterable[float],
        elapsed_s: float,
    ) -> None:
        """Count a scored batch.

        `queue_durations_s` are those of each conversation of each request, `elapsed_s` the time
        from the dispatch of the batch to the arrival of its rewards.
        """
        self._batches.labels(model).inc()
        self._tokens.labels(model, "computed").inc(result.num_computed_tokens)
        # Shared prefixes count once: these are the tokens that a replica looked up.
        self._prefix_cache_queries.labels(model).inc(
            result.num_computed_tokens + result.num_prefix_tokens
        )
        self._prefix_cache_hits.labels(model).inc(result.num_prefix_tokens)
        self._prefix_cache_bytes.labels(model).set(result.prefix_cache_bytes)
        self._batch_fill.labels(model).observe(result.num_computed_tokens / max_batch_tokens)
        self._batch_conversations.labels(model).observe(num_conversations)
        self._inference.labels(model).observe(result.inference_s)
        self._round_trip.labels(model).observe(elapsed_s)
        queue_wait = self._queue_duration.labels(model)
        for seconds in queue_durations_s:
            queue_wait.observe(seconds)

    def record_retry(self, model: str, reason: RetryReason, num_sequences: int) -> None:
        """Count a batch that is sent again."""
        self._retries.labels(model, reason).inc()
        self._retried_conversations.labels(model).inc(num_sequences)

    def record_abandonment(self, model: str, num_sequences: int) -> None:
        """Count conversations that are not sent again: each lost its replica twice."""
        self._abandoned_conversations.labels(model).inc(num_sequences)

    def record_reload(self, model: str, outcome: ReloadOutcome) -> None:
        """Count a replacement of a model's weights, or an attempt at it."""
        self._reloads.labels(model, outcome).inc()

    def snapshot(self) -> Snapshot:
        """Return the current value of every metric, without the `_created` samples."""
        snapshot = Snapshot(self._registry.collect())
        for metric in snapshot:
            created = f"{metric.name}_created"
            metric.samples = [sample for sample in metric.samples if sample.name != created]
        return snapshot


@dataclass(slots=True)
class _Distribution:
    """Rewards of one model: the count in each bucket, and their sums by sign."""

    counts: list[int]
    positive: float = 0.0
    negative: float = 0.0


class RewardHistogram:
    """A histogram of the rewards of each model, and their sums.

    prometheus_client's histogram observes one value at a time, at a microsecond each on the
    gateway's event loop, and a request may have thousands of rewards. OpenMetrics forbids the sum
    and the count of a histogram with negative values: its sum can decrease, which a counter must
    not. This class exports two sums that only increase, of the positive rewards and of the
    absolute values of the negative rewards; the count is the bucket of `+Inf`.
    """

    def __init__(
        self, noun: str, description: str, bounds: Sequence[float] = REWARD_BOUNDS
    ) -> None:
        self._noun, self._description, self._bounds = noun, description, bounds
        self._models: dict[str, _Distribution] = {}

    def add_model(self, model: str) -> None:
        """Export the series of a model before its first reward."""
        self._models.setdefault(model, _Distribution([0] * (len(self._bounds) + 1)))

    def observe(self, model: str, rewards: Iterable[float]) -> None:
        """Count finite rewards of a model."""
        self.add_model(model)
        distribution = self._models[model]
        for reward in rewards:
            distribution.counts[bisect_left(self._bounds, reward)] += 1
            if reward >= 0:
                distribution.positive += reward
            else:
                distribution.negative -= reward

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as prometheus_client requires of every collector."""
        name = f"{PREFIX}{self._noun}s"
        histogram = Metric(name, self._description, "histogram")
        sums = CounterMetricFamily(
            f"{PREFIX}{self._noun}_sum",
            f"Sum of the absolute values of {self._noun.replace('_', ' ')}s of one sign. Their "
            f'mean is (positive - negative) divided by {name}_bucket{{le="+Inf"}}, each as its '
            "increase.",
            labels=["model", "sign"],
        )
        for model, distribution in self._models.items():
            bounds: Sequence[float] = (*self._bounds, math.inf)
            for bound, total in zip(bounds, accumulate(distribution.counts), strict=True):
                labels = {"model": model, "le": "+Inf" if bound == math.inf else str(float(bound))}
                histogram.add_sample(f"{name}_bucket", labels, total)
            sums.add_metric([model, "positive"], distribution.positive)
            sums.add_metric([model, "negative"], distribution.negative)
        yield histogram
        yield sums


class Snapshot(list[Metric]):
    """Metrics at one moment. Is sent between processes, and encoded as a registry would be."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as the encoders of prometheus_client require of a registry."""
        return iter(self)


def merge_snapshots(snapshots: Mapping[str, Snapshot]) -> Snapshot:
    """Return one metric per name, with the series of all gateways.

    Args:
        snapshots: the snapshot of each gateway, by gateway id. Where gateways of two versions
            disagree during an update, the first gateway that has the metric decides its type and
            its HELP text; series of another type are dropped.
    """
    merged: dict[str, Metric] = {}
    for gateway, snapshot in snapshots.items():
        for metric in snapshot:
            empty = Metric(metric.name, metric.documentation, metric.type)
            target = merged.setdefault(metric.name, empty)
            if target.type == metric.type:
                target.samples += [
                    sample._replace(labels={**sample.labels, GATEWAY_LABEL: gateway})
                    for sample in metric.samples
                ]
    return Snapshot(merged.values())
