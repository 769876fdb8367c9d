"""All benchmarks, by name on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rm_core.benchmarks.base import Benchmark
from rm_core.benchmarks.judgebench import JudgeBench
from rm_core.benchmarks.m_rewardbench import MRewardBench
from rm_core.benchmarks.plan_rewardbench import PlanRewardBench
from rm_core.benchmarks.ppe import PPECorrectness, PPEPreference
from rm_core.benchmarks.prmbench import PRMBench
from rm_core.benchmarks.processbench import ProcessBench
from rm_core.benchmarks.response_sets import BestOfN
from rm_core.benchmarks.rewardbench import RewardBench
from rm_core.benchmarks.rewardbench2 import RewardBench2
from rm_core.benchmarks.rewardmath import RewardMATH
from rm_core.benchmarks.rm_bench import RMBench
from rm_core.benchmarks.rmb import RMB
from rm_core.benchmarks.variants import Option
from rm_core.benchmarks.vl_rewardbench import VLRewardBench
from rm_core.errors import BenchmarkDataError

# Any, since the types of their options differ.
_OFFICIAL: tuple[Any, ...] = (
    RewardBench(),
    RewardBench2(),
    RMBench(),
    RMB(),
    JudgeBench(),
    PPEPreference(),
    PPECorrectness(),
    ProcessBench(),
    PRMBench(),
    BestOfN(),
    VLRewardBench(),
    RewardMATH(),
    PlanRewardBench(),
    MRewardBench(),
)
BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({one.name: one for one in _OFFICIAL})
"""Every benchmark in its official variant."""


def build_benchmark(name: str, **options: str) -> Benchmark:
    """Build a benchmark with these options; without options, the official variant.

    Raises:
        BenchmarkDataError: the name, an option or its value is unknown; the message lists the
            known ones.
    """
    official = _get_official(name)
    build: Any = type(official)
    benchmark: Benchmark = build(official.options.from_strings(options))
    return benchmark


def list_options(name: str) -> tuple[Option, ...]:
    """Return the options of a benchmark: names, choices (the first is the default), meanings.

    Raises:
        BenchmarkDataError: the name is unknown.
    """
    return _get_official(name).options.list_options()


def _get_official(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise BenchmarkDataError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
