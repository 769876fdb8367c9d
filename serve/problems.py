"""Error class -> HTTP status and wire body: one table, also for the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rm_core.errors import InputError, ModelError, OverloadedError, RewardError
from serve.schemas import ErrorResponse

RETRY_AFTER_S = 5


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


@dataclass(frozen=True, slots=True)
class Problem:
    """How errors of one class look on the wire."""

    status: int
    type: str
    meaning: str


# The most specific class of an error decides.
PROBLEMS: dict[type[RewardError], Problem] = {
    UnknownModelError: Problem(404, "not_found_error", "the model is not served here"),
    InputError: Problem(400, "invalid_request_error", "the body is malformed"),
    OverloadedError: Problem(503, "overloaded_error", "try again after `Retry-After` seconds"),
    ModelError: Problem(500, "server_error", "the model failed; the service's log has details"),
    RewardError: Problem(500, "server_error", "the service failed; its log has details"),
}


def problem_of(error: RewardError) -> Problem:
    """The row of the table for an error."""
    return next(PROBLEMS[cls] for cls in type(error).__mro__ if cls in PROBLEMS)


def error_body(error: RewardError, param: str | None = None) -> dict[str, Any]:
    """The JSON body of a failed request."""
    return error_object(error.detail, problem_of(error).type, error.code, param)


def error_object(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """A body of the shape that every 4xx and 5xx has."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def responses() -> dict[int | str, dict[str, Any]]:
    """The error answers of a scoring route, for the OpenAPI document."""
    found = {p.status: p.meaning for p in reversed(PROBLEMS.values())}
    return {
        status: {"model": ErrorResponse, "description": meaning}
        for status, meaning in sorted(found.items())
    }
