"""Error class -> HTTP status and wire body: one table, also for the OpenAPI document."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from starlette.responses import JSONResponse

from rm_core import ScoreError
from rm_core.errors import InputError, ModelError, OverloadedError, RewardError, ScoringError
from serve.api.schemas import ErrorResponse
from serve.errors import (
    AuthenticationError,
    BodyTooLargeError,
    MisdirectedRequestError,
    RequestTooLargeError,
    TimeExceededError,
    TooManyRequestsError,
    UnknownModelError,
    UnsupportedMediaTypeError,
)

RETRY_AFTER_S = 5
# A caller's own input is quoted in errors, and it may have the length of a body.
MAX_MESSAGE_LENGTH = 2_000
MAX_QUOTED_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Problem:
    """How errors of one class look on the wire."""

    status: int
    type: str
    meaning: str


# The most specific class of an error decides.
PROBLEMS: dict[type[RewardError], Problem] = {
    AuthenticationError: Problem(401, "authentication_error", "no API key, or a wrong one"),
    BodyTooLargeError: Problem(413, "invalid_request_error", "the body is too large; split it"),
    RequestTooLargeError: Problem(
        413, "invalid_request_error", "the request is too large; split it"
    ),
    UnsupportedMediaTypeError: Problem(415, "invalid_request_error", "the body is no plain JSON"),
    MisdirectedRequestError: Problem(
        421, "invalid_request_error", "the header Host names a host that is not this service's"
    ),
    TimeExceededError: Problem(
        408, "timeout_error", "the deadline passed, or the body did not arrive in time"
    ),
    TooManyRequestsError: Problem(
        429, "rate_limit_error", "too many requests of this caller at the same time; wait"
    ),
    UnknownModelError: Problem(404, "not_found_error", "the model is not served here"),
    InputError: Problem(400, "invalid_request_error", "the body is malformed"),
    OverloadedError: Problem(503, "overloaded_error", "try again after `Retry-After` seconds"),
    ModelError: Problem(500, "server_error", "the model failed; the service's log has details"),
    RewardError: Problem(500, "server_error", "the service failed; its log has details"),
}


def problem_of(error: RewardError) -> Problem:
    """The row of the table for an error."""
    return next(PROBLEMS[cls] for cls in type(error).__mro__ if cls in PROBLEMS)


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed as a whole, before its answer gets the shape that its client knows.

    Attributes:
        status: of the native answer.
        type: of the native answer.
        code: stable snake_case word.
        message: for a person.
        param: the field that is wrong, where one is.
        findings: of a malformed body: the place of each field that is wrong, and what is.
        error: what was raised, where it was one of ours.
    """

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    findings: Sequence[tuple[str, str]] = ()
    error: RewardError | None = None


Shape: TypeAlias = Callable[[Failure], tuple[int, Any]]
"""Status and body of a failure, as the clients of a wire format know them."""

SHAPE = "skyreward.shape"
"""Of a request's scope: the shape of its errors, where its path alone does not tell."""


def native(failure: Failure) -> tuple[int, Any]:
    """The shape of our own errors."""
    body = error_object(failure.message, failure.type, failure.code, failure.param)
    return failure.status, body


def shape_of(scope: Mapping[str, Any]) -> Shape:
    """The shape of a request's errors, known before its body is."""
    if SHAPE in scope:
        shape: Shape = scope[SHAPE]
        return shape
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    shapes: Mapping[str, Shape] = getattr(scope["app"].state, "shapes", {})
    return shapes.get(path, native) if scope["method"] == "POST" else native


def failure_of(
    error: RewardError, param: str | None = None, findings: Sequence[tuple[str, str]] = ()
) -> Failure:
    """What an error means for the whole request."""
    row = problem_of(error)
    return Failure(row.status, row.type, error.code, error.detail, param, findings, error)


def problem_response(error: RewardError, scope: Mapping[str, Any]) -> JSONResponse:
    """The answer to a request that failed as a whole."""
    return failure_response(failure_of(error), scope)


def failure_response(failure: Failure, scope: Mapping[str, Any]) -> JSONResponse:
    """The same, for what is not only an error of ours."""
    status, body = shape_of(scope)(failure)
    headers = {}
    if status in (429, 503):
        seconds = getattr(failure.error, "retry_after_s", None) or RETRY_AFTER_S
        headers["Retry-After"] = str(math.ceil(seconds))
    if isinstance(failure.error, AuthenticationError):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers)


def error_of(error: ScoreError, where: str = "") -> RewardError:
    """The error to raise where one conversation fails the whole request, as some formats want."""
    cls = _classes_by_code().get(error.code, ScoringError)
    return cls(f"{where}: {error.message}" if where else error.message)


@functools.cache
def _classes_by_code() -> dict[str, type[RewardError]]:
    def walk(cls: type[RewardError]) -> Iterator[type[RewardError]]:
        yield cls
        for sub in cls.__subclasses__():
            yield from walk(sub)

    # The most general one of a code, and nothing that means something else to a client.
    return {cls.code: cls for cls in reversed([*walk(InputError), *walk(ModelError)])}


def error_body(error: RewardError, param: str | None = None) -> dict[str, Any]:
    """The JSON body of a failed request."""
    return error_object(error.detail, problem_of(error).type, error.code, param)


def error_object(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """A body of the shape that every 4xx and 5xx has."""
    param = None if param is None else quoted(param)
    message = quoted(message, MAX_MESSAGE_LENGTH)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def quoted(text: str, limit: int = MAX_QUOTED_LENGTH) -> str:
    """What a caller sent, fit to be sent back: not too long, and valid Unicode."""
    if len(text) > limit:
        text = f"{text[:limit]}... ({len(text)} characters)"
    return text.encode(errors="backslashreplace").decode()


def shaped_responses() -> dict[int | str, dict[str, Any]]:
    """Those of a route whose errors have the shape of another service's."""
    meanings = {p.status: p.meaning for p in reversed(PROBLEMS.values())}
    meanings |= {422: "as 400, for clients that know this one", 424: "as 500, likewise"}
    return {status: {"description": meaning} for status, meaning in sorted(meanings.items())}


def responses() -> dict[int | str, dict[str, Any]]:
    """The error answers of a scoring route, for the OpenAPI document."""
    found = {p.status: p.meaning for p in reversed(PROBLEMS.values())}
    return {
        status: {"model": ErrorResponse, "description": meaning}
        for status, meaning in sorted(found.items())
    }
