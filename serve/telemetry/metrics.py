"""The metrics at `/metrics`: name, labels and meaning of each, in one class.

Names begin with `skyreward_`; counters end in `_total` and durations in `_seconds`. Label values
come from the service (model aliases, route templates, its own codes), never from a request. All
metrics are those of one process since its start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rm_core import Reward, ScoreError
from serve import __version__
from serve.telemetry.aggregate import MetricFamily, build_snapshot
from serve.telemetry.collectors import ModelStateCollector, ReadStates, RewardHistogram
from serve.telemetry.context import RequestContext
from serve.telemetry.events import BatchReport, RetryReason

PREFIX = "skyreward_"
RETRY_REASONS = get_args(RetryReason)

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600,
)  # fmt: skip
# A conversation longer than the token budget is a batch alone, with a fill ratio above 1.
_FILL = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1, 1.5, 2, 4)
_CONVERSATIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Metrics:
    """Counters, histograms and gauges of one process, in a separate registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._make_request_metrics()
        self._make_conversation_metrics()
        self._make_batch_metrics()
        self._rewards = RewardHistogram(PREFIX)
        self._registry.register(self._rewards)
        build = self._gauge("build_info", "Always 1; the label is the version.", "version")
        build.labels(__version__).set(1)

    def add_models(self, models: Iterable[str], read: ReadStates) -> None:
        """Export all series of models at once: a counter that appears late hides its first event.

        Args:
            models: aliases of the models.
            read: returns the state of each model, by alias; called once per scrape.
        """
        for model in models:
            for outcome in ("scored", "error"):
                self._conversations.labels(model, outcome)
            for kind in ("received", "computed", "cached", "shared"):
                self._tokens.labels(model, kind)
            for reason in RETRY_REASONS:
                self._retries.labels(model, reason)
            for metric in (
                self._truncated_conversations,
                self._retried_conversations,
                self._abandoned_conversations,
                self._batches,
            ):
                metric.labels(model)
            self._rewards.add_model(model)
        self._registry.register(ModelStateCollector(PREFIX, read))

    def watch_in_flight(self, read: Callable[[], int]) -> None:
        """Export the number of scoring requests in flight, which `read` returns at each scrape."""
        self._in_flight.set_function(read)

    def record_request(
        self, context: RequestContext, route: str, status: int, total_s: float
    ) -> None:
        """Count a finished request."""
        self._requests.labels(route, str(status)).inc()
        self._request_duration.labels(route).observe(total_s)
        if context.code is not None:
            self._errors.labels(context.code).inc()
        if context.model is not None and context.tokenize_s > 0:
            self._tokenize.labels(context.model).observe(context.tokenize_s)

    def record_results(
        self,
        model: str,
        results: Iterable[Reward | ScoreError],
        *,
        num_computed_tokens: int,
        num_cached_tokens: int,
    ) -> None:
        """Count the conversations of a scored request.

        Args:
            model: alias of the model.
            results: results of the request's conversations.
            num_computed_tokens: the request's share of the tokens that went through the model.
            num_cached_tokens: tokens of conversations answered from the cache.
        """
        rewards = []
        num_tokens = num_truncated = num_errors = 0
        for result in results:
            if isinstance(result, ScoreError):
                num_errors += 1
                self._conversation_errors.labels(model, result.code).inc()
            else:
                rewards.append(result.reward)
                num_tokens += result.num_tokens
                num_truncated += result.truncated
        self._rewards.observe(model, rewards)
        self._conversations.labels(model, "scored").inc(len(rewards))
        self._conversations.labels(model, "error").inc(num_errors)
        self._truncated_conversations.labels(model).inc(num_truncated)
        self._tokens.labels(model, "received").inc(num_tokens)
        self._tokens.labels(model, "cached").inc(num_cached_tokens)
        # Negative where conversations were computed and then had no reward.
        shared = max(0, num_tokens - num_cached_tokens - num_computed_tokens)
        self._tokens.labels(model, "shared").inc(shared)

    def record_batch(self, report: BatchReport) -> None:
        """Count a scored batch."""
        model = report.model
        self._batches.labels(model).inc()
        self._tokens.labels(model, "computed").inc(report.num_computed_tokens)
        self._batch_fill.labels(model).observe(report.num_computed_tokens / report.max_batch_tokens)
        self._batch_conversations.labels(model).observe(report.num_sequences)
        self._inference.labels(model).observe(report.inference_s)
        self._round_trip.labels(model).observe(report.elapsed_s)
        queue_wait = self._queue_duration.labels(model)
        for seconds in report.queue_durations_s:
            queue_wait.observe(seconds)

    def record_retry(self, model: str, reason: RetryReason, num_sequences: int) -> None:
        """Count a batch that is sent again."""
        self._retries.labels(model, reason).inc()
        self._retried_conversations.labels(model).inc(num_sequences)

    def record_abandonment(self, model: str, num_sequences: int) -> None:
        """Count conversations that are not sent again: each lost its replica twice."""
        self._abandoned_conversations.labels(model).inc(num_sequences)

    def snapshot(self) -> list[MetricFamily]:
        """Return the current value of every metric, as plain data."""
        return build_snapshot(self._registry.collect())

    def _make_request_metrics(self) -> None:
        self._requests = self._counter(
            "requests",
            "HTTP requests, by route and status; 499 means that the client disconnected.",
            "route", "status",
        )  # fmt: skip
        self._request_duration = self._histogram(
            "request_duration_seconds",
            "Time from the arrival of a request to the end of its response, in seconds.",
            _SECONDS, "route",
        )  # fmt: skip
        self._in_flight = self._gauge(
            "requests_in_flight", "Scoring requests that are being processed."
        )
        self._errors = self._counter(
            "request_errors", "HTTP requests that failed as a whole, by error code.", "code"
        )
        self._tokenize = self._histogram(
            "tokenize_seconds",
            "Time to render and tokenize the conversations of a request, in seconds.",
            _SECONDS, "model",
        )  # fmt: skip

    def _make_conversation_metrics(self) -> None:
        self._conversations = self._counter(
            "conversations", "Conversations processed, by outcome: scored or error.",
            "model", "outcome",
        )  # fmt: skip
        self._conversation_errors = self._counter(
            "conversation_errors", "Conversations that failed, by error code.",
            "model", "code",
        )  # fmt: skip
        self._truncated_conversations = self._counter(
            "truncated_conversations", "Conversations truncated before scoring.", "model"
        )
        self._tokens = self._counter(
            "tokens",
            "Tokens by kind. received: tokens of all scored conversations; computed: tokens that "
            "went through the model; cached: tokens saved because the reward was cached; shared: "
            "tokens saved because several conversations share them.",
            "model", "kind",
        )  # fmt: skip

    def _make_batch_metrics(self) -> None:
        self._batches = self._counter("batches", "Batches scored.", "model")
        self._batch_fill = self._histogram(
            "batch_fill_ratio",
            "Computed tokens of a batch divided by the token budget.",
            _FILL,
            "model",
        )
        self._batch_conversations = self._histogram(
            "batch_conversations", "Conversations in a batch.", _CONVERSATIONS, "model"
        )
        self._queue_duration = self._histogram(
            "queue_duration_seconds",
            "Time that a conversation spent queued before dispatch, in seconds.",
            _SECONDS,
            "model",
        )
        self._inference = self._histogram(
            "inference_seconds",
            "Time of the forward pass of a batch, in seconds.",
            _SECONDS,
            "model",
        )
        self._round_trip = self._histogram(
            "batch_round_trip_seconds",
            "Time from the dispatch of a batch to its rewards in the gateway, in seconds.",
            _SECONDS, "model",
        )  # fmt: skip
        self._retries = self._counter(
            "retried_batches", "Batches sent again, by reason.", "model", "reason"
        )
        self._retried_conversations = self._counter(
            "retried_conversations", "Conversations in batches that were sent again.", "model"
        )
        self._abandoned_conversations = self._counter(
            "abandoned_conversations",
            "Conversations abandoned after crashing two replicas.",
            "model",
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(PREFIX + name, text, labels, registry=self._registry, buckets=buckets)
