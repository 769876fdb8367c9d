"""Error class -> HTTP status and wire body: one table, also for the OpenAPI document."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from rm_core.errors import InputError, ModelError, OverloadedError, RewardError
from serve.schemas import ErrorResponse

RETRY_AFTER_S = 5
# A caller's own input is quoted in errors, and it may have the length of a body.
MAX_MESSAGE_LENGTH = 2_000
MAX_QUOTED_LENGTH = 200


class BadRequestError(InputError):
    """The body is malformed as a whole; single bad conversations get errors of their own."""

    code = "bad_request"


class UnknownModelError(InputError):
    """The request names a model that is not served."""

    code = "model_not_found"


class ReplicaUnhealthyError(OverloadedError):
    """A replica cannot score any more and is being replaced; another one can."""

    code = "replica_unhealthy"


class ReplicaRefusedError(ReplicaUnhealthyError):
    """It could not score any more before the batch came; nothing of the batch was tried."""


class AuthenticationError(InputError):
    """No key came where one is needed, or one that is not known."""

    code = "invalid_api_key"


class BodyTooLargeError(InputError):
    """The body has more bytes than are taken."""

    code = "body_too_large"


class UnsupportedMediaTypeError(InputError):
    """The body is no plain JSON in UTF-8."""

    code = "unsupported_media_type"


class TimeExceededError(InputError):
    """The request took longer than it may."""

    code = "timeout"


class BodyTimeoutError(TimeExceededError):
    """The body did not arrive in time."""

    code = "body_timeout"


class DeadlineExceededError(TimeExceededError):
    """The request was not done by its deadline; it was given up."""

    code = "deadline_exceeded"


class TooManyRequestsError(OverloadedError):
    """One caller has as many requests running as it may."""

    code = "too_many_requests"


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
    UnsupportedMediaTypeError: Problem(415, "invalid_request_error", "the body is no plain JSON"),
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


def problem_response(error: RewardError, param: str | None = None) -> JSONResponse:
    """The answer to a request that failed as a whole."""
    headers = {}
    if isinstance(error, OverloadedError):
        seconds = getattr(error, "retry_after_s", None) or RETRY_AFTER_S
        headers["Retry-After"] = str(math.ceil(seconds))
    if isinstance(error, AuthenticationError):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error, param), problem_of(error).status, headers)


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


def responses() -> dict[int | str, dict[str, Any]]:
    """The error answers of a scoring route, for the OpenAPI document."""
    found = {p.status: p.meaning for p in reversed(PROBLEMS.values())}
    return {
        status: {"model": ErrorResponse, "description": meaning}
        for status, meaning in sorted(found.items())
    }
