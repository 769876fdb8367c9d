"""Every error class has a status and a body, and the OpenAPI document knows each status."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import serve.clients
import serve.evaluation.errors
import serve.tables
from rm_core import RewardError
from serve import problems


def subclasses(cls: type[RewardError]) -> Iterator[type[RewardError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from subclasses(sub)


ERRORS = sorted(set(subclasses(RewardError)), key=lambda cls: cls.__name__)


def test_the_walk_found_those_of_serve_too() -> None:
    assert {problems.UnknownModelError, serve.clients.ServiceError} <= set(ERRORS)
    assert serve.tables.UnknownCheckpointError in ERRORS


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_every_error_has_a_status_that_is_documented(cls: type[RewardError]) -> None:
    error = cls("what to do")
    problem = problems.problem_of(error)
    assert problem.status in problems.responses()
    assert problems.error_body(error) == {
        "error": {"message": "what to do", "type": problem.type, "param": None, "code": cls.code}
    }


def test_overload_is_never_a_4xx() -> None:
    for cls in ERRORS:
        if cls.__name__ in ("OverloadedError", "NotReadyError"):
            assert problems.problem_of(cls("")).status == 503
