"""Names of benchmarks, and their options as the command line gives them."""

from __future__ import annotations

import json

import pytest
from published_rows import scored, whole

from rm_core.benchmarks.base import Additive
from rm_core.benchmarks.registry import BENCHMARKS, benchmark, options_of
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
        assert made.preparation.source
        assert made.preparation.truncation in ("error", "left", "right")
        assert isinstance(made, Additive) == (name != "rewardbench2")


@pytest.mark.parametrize("name", NAMES)
def test_the_official_way_is_the_default(name: str) -> None:
    chosen = {option.name: option.choices[0] for option in options_of(name)}
    assert BENCHMARKS[name].options.values() == chosen
    assert benchmark(name).options == BENCHMARKS[name].options
    for option in options_of(name):
        assert option.meaning
        for value in option.choices:
            assert benchmark(name, **{option.name: value}).options.values()[option.name] == value
            dashed = option.name.replace("_", "-")
            assert benchmark(name, **{dashed: value}).options == (
                benchmark(name, **{option.name: value}).options
            )
        with pytest.raises(BenchmarkDataError, match="it may be"):
            benchmark(name, **{option.name: "perhaps"})
    with pytest.raises(BenchmarkDataError, match="there is no option `colour`"):
        benchmark(name, colour="red")


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    for ask in (benchmark, options_of):
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
    figures = made.figures(scored(items, lambda item: [0.0] * len(item.responses)))
    again = json.loads(json.dumps(figures.more, allow_nan=False))
    assert again == figures.more
