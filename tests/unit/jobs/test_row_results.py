"""Output records: results under their names, and all columns of the input unchanged."""

from __future__ import annotations

from typing import Any

import pytest

from rm_core import Reward, ScoreError
from serve.errors import JobInputError
from serve.jobs.inputs.rows import Row
from serve.jobs.record_reader import try_parse_record
from serve.jobs.row_results import (
    RESULT_NAMES,
    ResultNames,
    RowResults,
    choose_result_names,
    merge_record,
)

TURNS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
OWN = {"margin": 3, "rewards": [1], "chosen_reward": "mine", "warnings": "mine", "truncated": "no"}


def merge_results(
    record: dict[str, Any], *results: Reward | ScoreError, names: ResultNames | None = None
) -> Any:
    parsed = try_parse_record(record)
    row = RowResults(parsed.kind, results, parsed.error, parsed.warnings)
    return merge_record(record, row.build_columns(), names or ResultNames())


def test_columns_that_job_does_not_write_are_kept() -> None:
    record = {"messages": TURNS, **OWN}
    assert merge_results(record, Reward(1.5, 9)) == {**record, "reward": 1.5}


def test_input_column_named_like_result_is_kept() -> None:
    record = {"messages": TURNS, **dict.fromkeys(RESULT_NAMES, "mine")}
    names = choose_result_names(set(RESULT_NAMES), set())
    out = merge_results(record, Reward(1.5, 9, True, ("w",)), names=names)
    assert out == {
        **record,
        "skyreward_reward": 1.5,
        "skyreward_truncated": True,
        "skyreward_warnings": ["w"],
    }
    failed = merge_results({**record, "messages": TURNS[:1]}, names=names)
    assert failed["error"] == "mine"
    assert failed["skyreward_error"]["code"] == "invalid_conversation"
    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": 2.0, "error": "none"}
    out = merge_results(
        pair, Reward(1.5, 9), Reward(0.5, 9), names=choose_result_names({"margin"}, set())
    )
    assert out == {**pair, "chosen_reward": 1.5, "rejected_reward": 0.5, "skyreward_margin": 1.0}


def test_columns_of_an_earlier_run_are_replaced() -> None:
    names = choose_result_names(set(), set(RESULT_NAMES))
    earlier = {"messages": TURNS, "reward": 9.0, "truncated": True, "warnings": ["old"], "id": 7}
    assert merge_results(earlier, Reward(1.5, 9), names=names) == {
        "messages": TURNS,
        "id": 7,
        "reward": 1.5,
    }
    failed = {"messages": TURNS, "error": {"code": "old"}, "truncated": True}
    assert merge_results(failed, Reward(1.5, 9), names=names) == {"messages": TURNS, "reward": 1.5}
    out = merge_results({"messages": TURNS[:1], "reward": 9.0, "margin": 3}, names=names)
    assert set(out) == {"messages", "error"}


@pytest.mark.parametrize(
    ("own", "earlier", "replace", "renamed", "replaced"),
    [
        ("", "", False, {}, ""),
        ("margin", "", False, {"margin": "skyreward_margin"}, ""),
        ("margin", "", True, {}, "margin"),
        ("", "margin reward", False, {}, "margin reward"),
        # A column of the user in one file, a result of an earlier run in another: both are kept.
        ("margin", "margin reward", False, {"margin": "skyreward_margin"}, "reward"),
        ("margin", "skyreward_margin", False, {"margin": "skyreward_margin"}, "skyreward_margin"),
        ("margin skyreward_margin", "", True, {"margin": "skyreward_margin"}, "skyreward_margin"),
        ("skyreward_margin", "", False, {}, ""),
        ("line", "", True, {"line": "skyreward_line"}, ""),
    ],
)
def test_choose_result_names(
    own: str, earlier: str, replace: bool, renamed: dict[str, str], replaced: str
) -> None:
    names = choose_result_names(set(own.split()), set(earlier.split()), replace=replace)
    assert names == ResultNames(renamed, frozenset(replaced.split()))


def test_result_without_free_name_is_refused() -> None:
    with pytest.raises(JobInputError, match=r"`margin` and `skyreward_margin`.*rename"):
        choose_result_names({"margin", "skyreward_margin"}, set())


def test_output_has_truncated_and_warnings() -> None:
    out = merge_results({"messages": TURNS}, Reward(1.5, 9, True, ("system_prompt: ...",)))
    assert out["truncated"] is True
    assert out["warnings"] == ["system_prompt: ..."]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "`rejected`: no"),
        ({"prompt": "p", "responses": ["a", "b"]}, "`responses[1]`: no"),
        ({"messages": TURNS}, "no"),
    ],
)
def test_error_names_position_in_record(record: dict[str, Any], message: str) -> None:
    error = ScoreError("template_error", "no")
    results = [error] if "messages" in record else [Reward(1.5, 9), error]
    assert merge_results(record, *results)["error"] == {
        "code": "template_error",
        "message": message,
    }


def test_line_that_is_not_record_is_copied_as_text() -> None:
    error = ScoreError("invalid_json", "no")
    expected = {"code": "invalid_json", "message": "no"}
    columns = RowResults(None, error=error).build_columns()
    unread = Row(0, 7, error, '{"a": ', file=0)
    assert merge_record(unread.content, columns, ResultNames()) == {
        "line": '{"a": ',
        "error": expected,
    }
    assert merge_record([1], columns, ResultNames()) == {"line": [1], "error": expected}


@pytest.mark.parametrize("failing", [0, 1])
def test_pair_with_one_failed_side_has_only_error(failing: int) -> None:
    record = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    results: list[Reward | ScoreError] = [Reward(1.0, 9), Reward(0.5, 9)]
    results[failing] = ScoreError("non_finite_reward", "NaN")
    out = merge_results(record, *results)
    assert set(out) == {*record, "error"}
