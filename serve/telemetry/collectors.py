"""Two custom prometheus_client collectors: model states, read at every scrape, and rewards.

Model states come from a callable, so that they need not be pushed and are never stale.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from rm_core.cache import CacheStats

# Raw logits: most lie between -30 and 30, and close decisions lie near 0.
_POSITIVE_BOUNDS = (0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12.5, 15, 17.5, 20, 25, 30, 40, 50, 60)
REWARD_BOUNDS = (*(-bound for bound in reversed(_POSITIVE_BOUNDS)), 0.0, *_POSITIVE_BOUNDS)


@dataclass(frozen=True, slots=True)
class ModelState:
    """State of a model in one gateway at one moment.

    Attributes:
        ready: whether the model is loaded and warmed up.
        fingerprint: fingerprint of the model's rewards, by field; empty until the model is ready.
        num_replicas: number of replicas that respond.
        queued_tokens: tokens of the queued conversations.
        num_waiting: number of conversations that wait for a batch.
        num_in_flight: number of batches sent to replicas and not answered yet.
        cache: statistics of the model's score cache; None if the model has no cache.
    """

    ready: bool
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    num_replicas: int = 0
    queued_tokens: int = 0
    num_waiting: int = 0
    num_in_flight: int = 0
    cache: CacheStats | None = None


ReadStates = Callable[[], Mapping[str, ModelState]]

_GAUGES: dict[str, tuple[str, Callable[[ModelState], float]]] = {
    "model_ready": (
        "1 if the model is loaded and warmed up as this gateway sees it, else 0.",
        lambda state: state.ready,
    ),
    "replicas": (
        "Replicas of the model that this gateway sends batches to. All gateways share the same "
        "replicas: aggregate with max, not sum.",
        lambda state: state.num_replicas,
    ),
    "queue_tokens": (
        "Tokens of the conversations that wait for a batch.",
        lambda state: state.queued_tokens,
    ),
    "queue_conversations": (
        "Conversations waiting for a batch.",
        lambda state: state.num_waiting,
    ),
    "batches_in_flight": (
        "Batches sent to replicas and not answered yet.",
        lambda state: state.num_in_flight,
    ),
}
_CACHE: dict[str, tuple[type[CounterMetricFamily | GaugeMetricFamily], str]] = {
    "hits": (CounterMetricFamily, "Lookups in the score cache that found a reward."),
    "misses": (CounterMetricFamily, "Lookups in the score cache that found no reward."),
    "evictions": (CounterMetricFamily, "Rewards evicted from the score cache."),
    "entries": (GaugeMetricFamily, "Rewards in the score cache."),
    "bytes": (GaugeMetricFamily, "Estimated memory used by the score cache, in bytes."),
    "max_bytes": (
        GaugeMetricFamily,
        "Maximum memory of the score cache (setting cache_bytes), in bytes.",
    ),
}


class ModelStateCollector:
    """Gauges of each model's queue, replicas and readiness, and metrics of its score cache.

    Args:
        prefix: prefix of the metric names.
        read: returns the state of each model, by alias; called once per scrape.
    """

    def __init__(self, prefix: str, read: ReadStates) -> None:
        self._prefix = prefix
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as prometheus_client requires of every collector."""
        states = self._read()
        for name, (text, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(f"{self._prefix}{name}", text, labels=["model"])
            for alias, state in states.items():
                gauge.add_metric([alias], value(state))
            yield gauge
        for name, (kind, text) in _CACHE.items():
            family = kind(f"{self._prefix}cache_{name}", text, labels=["model"])
            for alias, state in states.items():
                if state.cache is not None:
                    family.add_metric([alias], getattr(state.cache, name))
            yield family
        yield self._info(states)

    def _info(self, states: Mapping[str, ModelState]) -> Metric:
        info = Metric(
            f"{self._prefix}model_info",
            "Always 1; the labels are the fingerprint of the rewards.",
            "gauge",
        )
        for alias, state in states.items():
            if state.fingerprint:
                info.add_sample(info.name, {"model": alias, **state.fingerprint}, 1)
        return info


@dataclass(slots=True)
class _Distribution:
    """Rewards of one model: the count in each bucket, and their sums by sign."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(REWARD_BOUNDS) + 1))
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

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._models: dict[str, _Distribution] = {}

    def add_model(self, model: str) -> None:
        """Export the series of a model before its first reward."""
        self._models.setdefault(model, _Distribution())

    def observe(self, model: str, rewards: Iterable[float]) -> None:
        """Count finite rewards of a model."""
        distribution = self._models.setdefault(model, _Distribution())
        for reward in rewards:
            distribution.counts[bisect_left(REWARD_BOUNDS, reward)] += 1
            if reward >= 0:
                distribution.positive += reward
            else:
                distribution.negative -= reward

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as prometheus_client requires of every collector."""
        name = f"{self._prefix}rewards"
        histogram = Metric(name, "Raw rewards, by model.", "histogram")
        sums = CounterMetricFamily(
            f"{self._prefix}reward_sum",
            "Sum of the absolute values of the rewards of one sign. The mean reward is "
            "(positive - negative) divided by "
            f'{self._prefix}conversations_total{{outcome="scored"}}, each as its increase.',
            labels=["model", "sign"],
        )
        for model, distribution in self._models.items():
            bounds: Sequence[float] = (*REWARD_BOUNDS, math.inf)
            for bound, total in zip(bounds, accumulate(distribution.counts), strict=True):
                labels = {"model": model, "le": "+Inf" if bound == math.inf else str(float(bound))}
                histogram.add_sample(f"{name}_bucket", labels, total)
            sums.add_metric([model, "positive"], distribution.positive)
            sums.add_metric([model, "negative"], distribution.negative)
        yield histogram
        yield sums
