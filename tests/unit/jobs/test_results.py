"""Job records: only columns that are ours are replaced, all others come back as they were."""

from __future__ import annotations

from typing import Any

import pytest

from rm_core import Reward, ScoreError
from serve.jobs.records import read_work
from serve.jobs.results import merged, outcome_of

TURNS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
OWN = {"margin": 3, "rewards": [1], "chosen_reward": "mine", "warnings": "mine", "truncated": "no"}


def scored(record: dict[str, Any], *results: Reward | ScoreError) -> Any:
    return merged(record, outcome_of(read_work(record), results))


def test_columns_of_other_shapes_are_the_callers_own() -> None:
    record = {"messages": TURNS, **OWN}
    assert scored(record, Reward(1.5, 9)) == {**record, "reward": 1.5}


def test_what_an_earlier_run_left_is_replaced() -> None:
    earlier = {"messages": TURNS, "reward": 9.0, "truncated": True, "warnings": ["old"], "id": 7}
    assert scored(earlier, Reward(1.5, 9)) == {"messages": TURNS, "id": 7, "reward": 1.5}
    failed = {"messages": TURNS, "error": {"code": "old"}, "truncated": True}
    assert scored(failed, Reward(1.5, 9)) == {"messages": TURNS, "reward": 1.5}


def test_a_stale_reward_does_not_stand_beside_an_error() -> None:
    out = scored({"messages": TURNS[:1], "reward": 9.0, "margin": 3})
    assert set(out) == {"messages", "margin", "error"}
    out = scored({"text": "no shape", "reward": 9.0})
    assert set(out) == {"text", "reward", "error"}


def test_what_is_true_of_a_reward_is_told() -> None:
    out = scored({"messages": TURNS}, Reward(1.5, 9, True, ("system_prompt: ...",)))
    assert out["truncated"] is True
    assert out["warnings"] == ["system_prompt: ..."]


@pytest.mark.parametrize(
    ("record", "place"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "`rejected`: no"),
        ({"prompt": "p", "responses": ["a", "b"]}, "`responses[1]`: no"),
        ({"messages": TURNS}, "no"),
    ],
)
def test_an_error_says_where_in_its_record_it_is(record: dict[str, Any], place: str) -> None:
    error = ScoreError("template_error", "no")
    results = [error] if "messages" in record else [Reward(1.5, 9), error]
    assert scored(record, *results)["error"] == {"code": "template_error", "message": place}


def test_a_line_that_is_no_record_is_carried_as_text() -> None:
    error = ScoreError("invalid_json", "no")
    told = {"code": "invalid_json", "message": "no"}
    out = merged(error, outcome_of(read_work(error), ()), '{"a": ')
    assert out == {"line": '{"a": ', "error": told}
    assert merged([1], outcome_of(error, ())) == {"line": [1], "error": told}


@pytest.mark.parametrize("failing", [0, 1])
def test_half_a_pair_is_no_pair(failing: int) -> None:
    record = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    results: list[Reward | ScoreError] = [Reward(1.0, 9), Reward(0.5, 9)]
    results[failing] = ScoreError("non_finite_reward", "NaN")
    out = scored(record, *results)
    assert set(out) == {*record, "error"}
