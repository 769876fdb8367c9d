"""Every error class has a status and a body, and the OpenAPI document knows each status."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import serve.client
from rm_core import RewardError
from serve import errors
from serve.api import error_responses


def subclasses(cls: type[RewardError]) -> Iterator[type[RewardError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from subclasses(sub)


ERRORS = sorted(set(subclasses(RewardError)), key=lambda cls: cls.__name__)


def test_the_walk_found_those_of_serve_too() -> None:
    assert {errors.UnknownModelError, serve.client.ServiceError} <= set(ERRORS)


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_every_error_has_a_status_that_is_documented(cls: type[RewardError]) -> None:
    fields = {"replica": "one"} if cls is errors.ReplicaLostError else {}
    error = cls("what to do", **fields)
    problem = error_responses.error_spec_for(error)
    assert problem.status in error_responses.build_error_docs(lifecycle=True)
    details = error_responses.ErrorDetails.from_error(error)
    _, body = error_responses.format_native_error(details)
    assert body == {
        "error": {"message": "what to do", "type": problem.type, "param": None, "code": cls.code}
    }


def test_overload_is_never_a_4xx() -> None:
    for cls in ERRORS:
        if cls.__name__ in ("OverloadedError", "NotReadyError"):
            assert error_responses.error_spec_for(cls("")).status == 503


def test_every_error_of_the_service_is_in_the_drawing() -> None:
    assert errors.__doc__
    drawn = set(re.findall(r"\w+Error", errors.__doc__))
    here = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert drawn == {name for name in here if name.endswith("Error")}
