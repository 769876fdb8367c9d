"""States of the models, as a prometheus_client collector that reads them at every scrape.

They come from a callable, so that they need not be pushed and are never stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from rm_core.cache import CacheStats

NAMESPACE = "skyreward"
PREFIX = f"{NAMESPACE}_"


@dataclass(frozen=True, slots=True)
class ModelState:
    """State of a model in one gateway at one moment."""

    ready: bool  # whether the model is loaded and warmed up
    sleep_level: int = 0  # level of the model's sleep; 0 while it is awake
    # Fingerprint of the model's rewards, by field; empty until the model is ready.
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    num_replicas: int = 0  # number of replicas that respond
    queued_tokens: int = 0  # tokens of the queued conversations
    num_waiting: int = 0  # number of conversations that wait for a batch
    num_in_flight: int = 0  # number of batches sent to replicas and not answered yet
    # Number of texts on which fastokens gave other token ids than `tokenizers`, or failed.
    num_tokenizer_differences: int = 0
    # Statistics of the model's score cache; None if the model has no cache.
    cache: CacheStats | None = None


ReadStates = Callable[[], Mapping[str, ModelState]]

_GAUGES: dict[str, tuple[str, Callable[[ModelState], float]]] = {
    "model_ready": (
        "1 if the model is loaded and warmed up as this gateway sees it, else 0.",
        lambda state: state.ready,
    ),
    "model_asleep": (
        "Level of the model's sleep: 1 or 2; 0 while it is awake.",
        lambda state: state.sleep_level,
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
    "queue_conversations": ("Conversations waiting for a batch.", lambda state: state.num_waiting),
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
    """Gauges of each model's queue, replicas and readiness, and metrics of its score cache."""

    def __init__(self, read: ReadStates) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as prometheus_client requires of every collector."""
        states = self._read()
        for name, (text, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(f"{PREFIX}{name}", text, labels=["model"])
            for alias, state in states.items():
                gauge.add_metric([alias], value(state))
            yield gauge
        yield self._count_tokenizer_differences(states)
        for name, (kind, text) in _CACHE.items():
            family = kind(f"{PREFIX}cache_{name}", text, labels=["model"])
            for alias, state in states.items():
                if state.cache is not None:
                    family.add_metric([alias], getattr(state.cache, name))
            yield family
        yield self._info(states)

    def _count_tokenizer_differences(self, states: Mapping[str, ModelState]) -> Metric:
        counter = CounterMetricFamily(
            f"{PREFIX}tokenizer_differences",
            "Texts on which fastokens gave other token ids than tokenizers, or failed. They got "
            "the ids of tokenizers, which is used from the first one on.",
            labels=["model"],
        )
        for alias, state in states.items():
            counter.add_metric([alias], state.num_tokenizer_differences)
        return counter

    def _info(self, states: Mapping[str, ModelState]) -> Metric:
        info = Metric(
            f"{PREFIX}model_info",
            "Always 1; the labels are the fingerprint of the rewards.",
            "gauge",
        )
        for alias, state in states.items():
            if state.fingerprint:
                info.add_sample(info.name, {"model": alias, **state.fingerprint}, 1)
        return info
