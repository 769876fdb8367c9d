"""All benchmarks, by name on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from rm_core.benchmarks.base import Benchmark
from rm_core.benchmarks.judgebench import JudgeBench, JudgeBenchOptions
from rm_core.benchmarks.ppe import PPECorrectness, PPEPreference
from rm_core.benchmarks.rewardbench import RewardBench, RewardBenchOptions
from rm_core.benchmarks.rewardbench2 import RewardBench2, RewardBench2Options
from rm_core.benchmarks.rm_bench import RMBench
from rm_core.benchmarks.rmb import RMB
from rm_core.benchmarks.variants import BenchmarkOptions, Option
from rm_core.errors import BenchmarkDataError


class _Entry(NamedTuple):
    factory: Any
    options: type[BenchmarkOptions]


_KNOWN: Mapping[str, _Entry] = {
    RewardBench.name: _Entry(RewardBench, RewardBenchOptions),
    RewardBench2.name: _Entry(RewardBench2, RewardBench2Options),
    RMBench.name: _Entry(RMBench, BenchmarkOptions),
    RMB.name: _Entry(RMB, BenchmarkOptions),
    JudgeBench.name: _Entry(JudgeBench, JudgeBenchOptions),
    PPEPreference.name: _Entry(PPEPreference, BenchmarkOptions),
    PPECorrectness.name: _Entry(PPECorrectness, BenchmarkOptions),
}
BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {name: entry.factory(entry.options()) for name, entry in _KNOWN.items()}
)
"""Every benchmark in its official variant."""


def build_benchmark(name: str, **options: str) -> Benchmark:
    """Build a benchmark with these options; without options, the official variant.

    Raises:
        BenchmarkDataError: the name, an option or its value is unknown; the message lists the
            known ones.
    """
    entry = _get_entry(name)
    benchmark: Benchmark = entry.factory(entry.options.from_strings(options))
    return benchmark


def list_options(name: str) -> tuple[Option, ...]:
    """Return the options of a benchmark: names, choices (the first is the default), meanings.

    Raises:
        BenchmarkDataError: the name is unknown.
    """
    return _get_entry(name).options.list_options()


def _get_entry(name: str) -> _Entry:
    if name not in _KNOWN:
        raise BenchmarkDataError(f"unknown benchmark {name!r}; known: {', '.join(_KNOWN)}")
    return _KNOWN[name]
