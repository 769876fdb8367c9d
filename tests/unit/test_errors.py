"""The error tree: unique codes, and details that survive pickling and JSON."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator

import pytest

import rm_core
from rm_core import errors
from rm_core.errors import RewardError
from rm_core.types import ScoreError


def tree(cls: type[RewardError]) -> Iterator[type[RewardError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from tree(child)


CLASSES = [cls for cls in tree(RewardError) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", CLASSES)
def test_errors_survive_pickling(cls: type[RewardError]) -> None:
    error = cls("12 tokens; shorten it")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is cls
        assert (again.code, again.detail) == (cls.code, "12 tokens; shorten it")
        assert str(again) == "12 tokens; shorten it"


def test_error_codes_are_unique_snake_case() -> None:
    codes = [cls.__dict__["code"] for cls in CLASSES]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_module_docstring_lists_all_errors() -> None:
    drawn = re.findall(r"^[│├└─ ]*(\w+Error)\b", errors.__doc__ or "", flags=re.MULTILINE)
    assert drawn == [cls.__name__ for cls in CLASSES]


def test_every_error_is_exported() -> None:
    assert {cls.__name__ for cls in CLASSES} <= set(rm_core.__all__)


@pytest.mark.parametrize("cls", CLASSES)
def test_score_error_keeps_code_and_detail(cls: type[RewardError]) -> None:
    assert ScoreError.from_exception(cls("why")) == ScoreError(code=cls.code, message="why")


def test_lone_surrogate_in_detail_is_escaped() -> None:
    error = RewardError("no `\ud83d` in it")
    assert error.detail == "no `\\ud83d` in it"
    assert json.dumps({"message": str(error)}, ensure_ascii=False).encode()
