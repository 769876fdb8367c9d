"""Maps error classes to HTTP status and body, in one table, also for the OpenAPI document."""

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
    PermissionDeniedError,
    ReloadRefusedError,
    RequestTooLargeError,
    TimeExceededError,
    TooManyRequestsError,
    UnknownModelError,
    UnsupportedMediaTypeError,
)

RETRY_AFTER_S = 5
# Errors quote the client's input, which may be as long as a whole body.
MAX_MESSAGE_LENGTH = 2_000
MAX_QUOTED_LENGTH = 200


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """Status, type and description of the errors of one class."""

    status: int
    type: str
    description: str


# The most specific class of an error decides.
ERROR_SPECS: dict[type[RewardError], ErrorSpec] = {
    AuthenticationError: ErrorSpec(401, "authentication_error", "the API key is missing or wrong"),
    PermissionDeniedError: ErrorSpec(
        403, "permission_error", "the client may score, but may not control models"
    ),
    BodyTooLargeError: ErrorSpec(413, "invalid_request_error", "the body is too large; split it"),
    RequestTooLargeError: ErrorSpec(
        413, "invalid_request_error", "the request is too large; split it"
    ),
    UnsupportedMediaTypeError: ErrorSpec(
        415, "invalid_request_error", "the body is not plain JSON"
    ),
    MisdirectedRequestError: ErrorSpec(
        421, "invalid_request_error", "the header Host names a host that is not this service's"
    ),
    TimeExceededError: ErrorSpec(
        408, "timeout_error", "the deadline passed, or the body did not arrive in time"
    ),
    TooManyRequestsError: ErrorSpec(
        429, "rate_limit_error", "too many concurrent requests of this client; wait"
    ),
    UnknownModelError: ErrorSpec(404, "not_found_error", "the model is not served"),
    ReloadRefusedError: ErrorSpec(
        409, "conflict_error", "the new weights cannot be used; the old ones serve on"
    ),
    InputError: ErrorSpec(400, "invalid_request_error", "the body is malformed"),
    OverloadedError: ErrorSpec(503, "overloaded_error", "try again after `Retry-After` seconds"),
    ModelError: ErrorSpec(500, "server_error", "the model failed; the service's log has details"),
    RewardError: ErrorSpec(500, "server_error", "the service failed; its log has details"),
}


def error_spec_for(error: RewardError) -> ErrorSpec:
    """Return the status, type and description for an error."""
    return next(ERROR_SPECS[cls] for cls in type(error).__mro__ if cls in ERROR_SPECS)


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """The failure of a whole request, before it is formatted for the client's wire format."""

    status: int  # status of the native response
    type: str  # error type of the native response
    code: str  # stable snake_case error code
    message: str  # message for a person
    param: str | None = None  # name of the wrong field, if any
    # Path and message of each wrong field of a malformed body.
    field_errors: Sequence[tuple[str, str]] = ()
    error: RewardError | None = None  # the raised error; None for an error of the web framework

    @classmethod
    def from_error(
        cls,
        error: RewardError,
        param: str | None = None,
        field_errors: Sequence[tuple[str, str]] = (),
    ) -> ErrorDetails:
        """Return the details of an error that fails a whole request."""
        spec = error_spec_for(error)
        return cls(spec.status, spec.type, error.code, error.detail, param, field_errors, error)


ErrorFormat: TypeAlias = Callable[[ErrorDetails], tuple[int, Any]]
"""Returns status and body of a failure, in a wire format."""

ERROR_FORMAT_KEY = "skyreward.error_format"
"""Key in a request's scope: the format of its errors, if the path alone does not determine it."""


def format_native_error(details: ErrorDetails) -> tuple[int, Any]:
    """Return status and body of a failure, in the native format."""
    error = {
        "message": truncate_for_message(details.message, MAX_MESSAGE_LENGTH),
        "type": details.type,
        "param": None if details.param is None else truncate_for_message(details.param),
        "code": details.code,
    }
    return details.status, {"error": error}


def error_format_for(scope: Mapping[str, Any]) -> ErrorFormat:
    """Return the format of a request's errors: by path, unless the body has determined it."""
    if ERROR_FORMAT_KEY in scope:
        error_format: ErrorFormat = scope[ERROR_FORMAT_KEY]
        return error_format
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    error_formats: Mapping[str, ErrorFormat] = getattr(scope["app"].state, "error_formats", {})
    if scope["method"] != "POST":
        return format_native_error
    return error_formats.get(path, format_native_error)


def build_error_response(
    failure: RewardError | ErrorDetails, scope: Mapping[str, Any]
) -> JSONResponse:
    """Return the response for a request that failed as a whole, in the request's error format."""
    details = ErrorDetails.from_error(failure) if isinstance(failure, RewardError) else failure
    status, body = error_format_for(scope)(details)
    headers = {}
    if status in (429, 503):
        seconds = getattr(details.error, "retry_after_s", None) or RETRY_AFTER_S
        headers["Retry-After"] = str(math.ceil(seconds))
    if isinstance(details.error, AuthenticationError):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers)


def build_exception(error: ScoreError, where: str = "") -> RewardError:
    """Return the exception for a conversation whose error fails the whole request.

    `where`, its position in the request, is put before the message.
    """
    cls = _classes_by_code().get(error.code, ScoringError)
    return cls(f"{where}: {error.message}" if where else error.message)


@functools.cache
def _classes_by_code() -> dict[str, type[RewardError]]:
    def walk(cls: type[RewardError]) -> Iterator[type[RewardError]]:
        yield cls
        for subclass in cls.__subclasses__():
            yield from walk(subclass)

    # The most general class of each code. Only InputError and ModelError: other classes, such as
    # OverloadedError, mean something else to a client.
    return {cls.code: cls for cls in reversed([*walk(InputError), *walk(ModelError)])}


def truncate_for_message(text: str, limit: int = MAX_QUOTED_LENGTH) -> str:
    """Make the client's input safe to quote in an error: not too long, and valid Unicode."""
    if len(text) > limit:
        text = f"{text[:limit]}... ({len(text)} characters)"
    return text.encode(errors="backslashreplace").decode()


def build_error_docs(*, lifecycle: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI documentation of the errors of a native route that scores, or controls."""
    return {
        status: {"model": ErrorResponse, "description": description}
        for status, description in sorted(_STATUS_DESCRIPTIONS.items())
        if lifecycle or status not in _LIFECYCLE_STATUSES
    }


def build_compat_error_docs() -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI documentation of the errors of another service's wire format."""
    descriptions = _STATUS_DESCRIPTIONS | {
        422: "same as 400, for clients that expect 422",
        424: "same as 500, for clients that expect 424",
    }
    return {
        status: {"description": description}
        for status, description in sorted(descriptions.items())
        if status not in _LIFECYCLE_STATUSES
    }


_LIFECYCLE_STATUSES = (403, 409)
# Of several classes with one status, the first describes it.
_STATUS_DESCRIPTIONS = {spec.status: spec.description for spec in reversed(ERROR_SPECS.values())}
