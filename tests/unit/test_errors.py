"""The error tree: codes that are told apart, and details that survive any journey."""

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


def test_codes_are_unique_words_of_their_own() -> None:
    codes = [cls.__dict__["code"] for cls in CLASSES]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_the_tree_is_the_one_that_its_module_draws() -> None:
    drawn = re.findall(r"^[│├└─ ]*(\w+Error)\b", errors.__doc__ or "", flags=re.MULTILINE)
    assert drawn == [cls.__name__ for cls in CLASSES]


def test_every_error_is_public() -> None:
    assert {cls.__name__ for cls in CLASSES} <= set(rm_core.__all__)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_record_of_an_error_keeps_its_code_and_detail(cls: type[RewardError]) -> None:
    assert ScoreError.from_exception(cls("why")) == ScoreError(code=cls.code, message="why")


def test_broken_text_in_a_detail_can_be_sent() -> None:
    error = RewardError("no `\ud83d` in it")
    assert error.detail == "no `\\ud83d` in it"
    assert json.dumps({"message": str(error)}, ensure_ascii=False).encode()
