"""Names of benchmarks, and their options as given on the command line."""

from __future__ import annotations

import json

import pytest
from published_rows import read, scored, whole

from rm_core.benchmarks.base import DecomposableBenchmark
from rm_core.benchmarks.registry import BENCHMARKS, build_benchmark, list_options
from rm_core.errors import BenchmarkDataError, InputError

NAMES = [
    "rewardbench",
    "rewardbench2",
    "rm-bench",
    "rmb",
    "judgebench",
    "ppe-preference",
    "ppe-correctness",
    "processbench",
    "prmbench",
    "best-of-n",
    "vl-rewardbench",
    "rewardmath",
    "plan-rewardbench",
    "m-rewardbench",
]
JOINTLY_GRADED = ("rewardbench2", "processbench", "prmbench")


def test_registry_has_names_of_command_line() -> None:
    assert list(BENCHMARKS) == NAMES
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.title
        assert benchmark.official_protocol.source
        assert benchmark.official_protocol.truncation in ("error", "left", "right")
        assert isinstance(benchmark, DecomposableBenchmark) == (name not in JOINTLY_GRADED)


@pytest.mark.parametrize("name", NAMES)
def test_official_variant_is_default(name: str) -> None:
    chosen = {option.name: option.choices[0] for option in list_options(name)}
    assert BENCHMARKS[name].options.to_dict() == chosen
    assert build_benchmark(name).options == BENCHMARKS[name].options
    for option in list_options(name):
        assert option.meaning
        for value in option.choices:
            assert (
                build_benchmark(name, **{option.name: value}).options.to_dict()[option.name]
                == value
            )
            dashed = option.name.replace("_", "-")
            assert build_benchmark(name, **{dashed: value}).options == (
                build_benchmark(name, **{option.name: value}).options
            )
        with pytest.raises(BenchmarkDataError, match="it must be"):
            build_benchmark(name, **{option.name: "perhaps"})
    with pytest.raises(BenchmarkDataError, match="unknown option `color`"):
        build_benchmark(name, color="red")


def test_unknown_benchmark_error_lists_known_names() -> None:
    for function in (build_benchmark, list_options):
        with pytest.raises(InputError, match="unknown benchmark 'rewardbench3'; known: rewardben"):
            function("rewardbench3")


@pytest.mark.parametrize("name", NAMES)
def test_item_keys_are_unique(name: str) -> None:
    benchmark = BENCHMARKS[name]
    items = read(benchmark, whole(name))
    assert len({item.key for item in items}) == len(items)
    for item in items[:: max(1, len(items) // 50)]:
        indices = range(len(item.responses))
        assert all(better in indices and worse in indices for better, worse in item.preferences)
        assert item.prompt[-1]["role"] == "user"


@pytest.mark.parametrize("name", NAMES)
def test_extra_results_are_json(name: str) -> None:
    benchmark = BENCHMARKS[name]
    items = read(benchmark, whole(name)[::7])
    result = benchmark.compute_result(scored(items, lambda item: [0.0] * len(item.responses)))
    again = json.loads(json.dumps(result.extra, allow_nan=False))
    assert again == result.extra
