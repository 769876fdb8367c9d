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
class ErrorSpec:
    """How errors of one class look on the wire."""

    status: int
    type: str
    description: str


# The most specific class of an error decides.
ERROR_SPECS: dict[type[RewardError], ErrorSpec] = {
    AuthenticationError: ErrorSpec(401, "authentication_error", "no API key, or a wrong one"),
    BodyTooLargeError: ErrorSpec(413, "invalid_request_error", "the body is too large; split it"),
    RequestTooLargeError: ErrorSpec(
        413, "invalid_request_error", "the request is too large; split it"
    ),
    UnsupportedMediaTypeError: ErrorSpec(415, "invalid_request_error", "the body is no plain JSON"),
    MisdirectedRequestError: ErrorSpec(
        421, "invalid_request_error", "the header Host names a host that is not this service's"
    ),
    TimeExceededError: ErrorSpec(
        408, "timeout_error", "the deadline passed, or the body did not arrive in time"
    ),
    TooManyRequestsError: ErrorSpec(
        429, "rate_limit_error", "too many requests of this caller at the same time; wait"
    ),
    UnknownModelError: ErrorSpec(404, "not_found_error", "the model is not served here"),
    InputError: ErrorSpec(400, "invalid_request_error", "the body is malformed"),
    OverloadedError: ErrorSpec(503, "overloaded_error", "try again after `Retry-After` seconds"),
    ModelError: ErrorSpec(500, "server_error", "the model failed; the service's log has details"),
    RewardError: ErrorSpec(500, "server_error", "the service failed; its log has details"),
}


def error_spec_for(error: RewardError) -> ErrorSpec:
    """The row of the table for an error."""
    return next(ERROR_SPECS[cls] for cls in type(error).__mro__ if cls in ERROR_SPECS)


@dataclass(frozen=True, slots=True)
class ErrorDetails:
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
    field_errors: Sequence[tuple[str, str]] = ()
    error: RewardError | None = None


ErrorFormat: TypeAlias = Callable[[ErrorDetails], tuple[int, Any]]
"""Status and body of a failure, as the clients of a wire format know them."""

ERROR_FORMAT_KEY = "skyreward.error_format"
"""Of a request's scope: the shape of its errors, where its path alone does not tell."""


def format_native_error(failure: ErrorDetails) -> tuple[int, Any]:
    """The shape of our own errors."""
    body = build_error_object(failure.message, failure.type, failure.code, failure.param)
    return failure.status, body


def error_format_for(scope: Mapping[str, Any]) -> ErrorFormat:
    """The shape of a request's errors, known before its body is."""
    if ERROR_FORMAT_KEY in scope:
        error_format: ErrorFormat = scope[ERROR_FORMAT_KEY]
        return error_format
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    error_formats: Mapping[str, ErrorFormat] = getattr(scope["app"].state, "error_formats", {})
    if scope["method"] != "POST":
        return format_native_error
    return error_formats.get(path, format_native_error)


def build_error_details(
    error: RewardError, param: str | None = None, field_errors: Sequence[tuple[str, str]] = ()
) -> ErrorDetails:
    """What an error means for the whole request."""
    row = error_spec_for(error)
    return ErrorDetails(row.status, row.type, error.code, error.detail, param, field_errors, error)


def build_error_response(error: RewardError, scope: Mapping[str, Any]) -> JSONResponse:
    """The answer to a request that failed as a whole."""
    return build_response_from_details(build_error_details(error), scope)


def build_response_from_details(details: ErrorDetails, scope: Mapping[str, Any]) -> JSONResponse:
    """The same, for what is not only an error of ours."""
    status, body = error_format_for(scope)(details)
    headers = {}
    if status in (429, 503):
        seconds = getattr(details.error, "retry_after_s", None) or RETRY_AFTER_S
        headers["Retry-After"] = str(math.ceil(seconds))
    if isinstance(details.error, AuthenticationError):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers)


def build_exception(error: ScoreError, where: str = "") -> RewardError:
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


def build_error_body(error: RewardError, param: str | None = None) -> dict[str, Any]:
    """The JSON body of a failed request."""
    return build_error_object(error.detail, error_spec_for(error).type, error.code, param)


def build_error_object(
    message: str, kind: str, code: str, param: str | None = None
) -> dict[str, Any]:
    """A body of the shape that every 4xx and 5xx has."""
    param = None if param is None else truncate_for_message(param)
    message = truncate_for_message(message, MAX_MESSAGE_LENGTH)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def truncate_for_message(text: str, limit: int = MAX_QUOTED_LENGTH) -> str:
    """What a caller sent, fit to be sent back: not too long, and valid Unicode."""
    if len(text) > limit:
        text = f"{text[:limit]}... ({len(text)} characters)"
    return text.encode(errors="backslashreplace").decode()


def build_compat_error_docs() -> dict[int | str, dict[str, Any]]:
    """Those of a route whose errors have the shape of another service's."""
    meanings = {p.status: p.description for p in reversed(ERROR_SPECS.values())}
    meanings |= {422: "as 400, for clients that know this one", 424: "as 500, likewise"}
    return {status: {"description": meaning} for status, meaning in sorted(meanings.items())}


def build_error_docs() -> dict[int | str, dict[str, Any]]:
    """The error answers of a scoring route, for the OpenAPI document."""
    found = {p.status: p.description for p in reversed(ERROR_SPECS.values())}
    return {
        status: {"model": ErrorResponse, "description": meaning}
        for status, meaning in sorted(found.items())
    }
