"""Names of benchmarks, and their options as the command line gives them."""

from __future__ import annotations

import json

import pytest
from published_rows import scored, whole

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
]


def test_names_are_those_of_the_command_line() -> None:
    assert list(BENCHMARKS) == NAMES
    for name, made in BENCHMARKS.items():
        assert made.name == name
        assert made.title
        assert made.official_protocol.source
        assert made.official_protocol.truncation in ("error", "left", "right")
        assert isinstance(made, DecomposableBenchmark) == (name != "rewardbench2")


@pytest.mark.parametrize("name", NAMES)
def test_the_official_way_is_the_default(name: str) -> None:
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
        with pytest.raises(BenchmarkDataError, match="it may be"):
            build_benchmark(name, **{option.name: "perhaps"})
    with pytest.raises(BenchmarkDataError, match="there is no option `colour`"):
        build_benchmark(name, colour="red")


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    for ask in (build_benchmark, list_options):
        with pytest.raises(InputError, match="no benchmark 'rewardbench3'; there is rewardbench,"):
            ask("rewardbench3")


@pytest.mark.parametrize("name", NAMES)
def test_keys_of_the_whole_are_unique(name: str) -> None:
    made = BENCHMARKS[name]
    items = [made.read(row, origin) for row, origin in whole(name)]
    assert len({item.key for item in items}) == len(items)
    for item in items[:: max(1, len(items) // 50)]:
        places = range(len(item.responses))
        assert all(better in places and worse in places for better, worse in item.preferences)
        assert item.prompt[-1]["role"] == "user"


@pytest.mark.parametrize("name", NAMES)
def test_more_is_json(name: str) -> None:
    made = BENCHMARKS[name]
    items = [made.read(row, origin) for row, origin in whole(name)[::7]]
    figures = made.compute_result(scored(items, lambda item: [0.0] * len(item.responses)))
    again = json.loads(json.dumps(figures.extra, allow_nan=False))
    assert again == figures.extra
