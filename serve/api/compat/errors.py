"""How each client's own service tells that a request failed: status and body, by path.

One table, asked by everything that refuses a request, also before its body is read. Overload and
lateness are 503 for all of them but text-embeddings-inference, whose clients know 429: trainers
that are told a 4xx never come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from rm_core import ConversationTooLongError, ModelError, NotReadyError, OverloadedError
from serve.api.error_responses import (
    MAX_MESSAGE_LENGTH,
    ErrorDetails,
    ErrorFormat,
    format_native_error,
    truncate_for_message,
)
from serve.errors import (
    AuthenticationError,
    TimeExceededError,
    UnknownModelError,
    UnsupportedMediaTypeError,
)


def format_openai_error(failure: ErrorDetails) -> tuple[int, Any]:
    """Ours, with the statuses that trainers expect."""
    _, body = format_native_error(failure)
    return _status(failure), body


def format_vllm_error(failure: ErrorDetails) -> tuple[int, Any]:
    """An object in `error`, its `code` the status; a bare string where the key is wrong."""
    if isinstance(failure.error, AuthenticationError):
        return 401, {"error": "Unauthorized"}
    status = _status(failure)
    message = _message(failure)
    param = failure.param
    if failure.field_errors:
        kind = "Bad Request"
        num_findings = len(failure.field_errors)
        message = f"{num_findings} validation error{'s'[: num_findings > 1]}: {message}"
        param = f"body.{param}" if param else "body"
    elif isinstance(failure.error, UnknownModelError):
        kind = "NotFoundError"
    elif status in (500, 503):
        kind = {500: "InternalServerError", 503: "Service Unavailable"}[status]
    elif status < 500 and failure.error is not None:
        kind = "BadRequestError"
    else:
        kind = HTTPStatus(status).phrase
    if isinstance(failure.error, ConversationTooLongError):
        # The words and the field by which its clients know this error.
        message = f"This model's maximum context length is exceeded: {message}"
        param = "input_tokens"
    error = {
        "message": message,
        "type": kind,
        "param": param and truncate_for_message(param),
        "code": status,
    }
    return status, {"error": error}


def format_sglang_error(failure: ErrorDetails) -> tuple[int, Any]:
    """The flat one of its routes below `/v1`."""
    if isinstance(failure.error, AuthenticationError):
        return 401, {"error": "Unauthorized"}
    status, body = format_vllm_error(failure)
    error = body["error"]
    if status == 400:
        error["type"] = "BadRequestError"
    return status, {"object": "error", **error}


def format_sglang_native_error(failure: ErrorDetails) -> tuple[int, Any]:
    """Of its own `/classify`: a message alone, or the flat one for a malformed body."""
    if failure.field_errors or isinstance(failure.error, AuthenticationError):
        return format_sglang_error(failure)
    return _status(failure), {"error": {"message": _message(failure)}}


def format_tei_error(failure: ErrorDetails) -> tuple[int, Any]:
    """Text-embeddings-inference: a message and one of its own kinds of error."""
    error = failure.error
    if isinstance(error, NotReadyError):
        status, kind = 503, "Unhealthy"
    elif isinstance(error, OverloadedError | TimeExceededError):
        status, kind = 429, "Overloaded"
    elif isinstance(error, ModelError):
        status, kind = 424, "Backend"
    elif isinstance(error, ConversationTooLongError):
        status, kind = 422, "Validation"
    elif error is not None and error.code == "empty_input":
        status, kind = 400, "Empty"
    elif failure.status == 400:
        status, kind = 422, "Validation"
    else:
        status, kind = failure.status, "Backend" if failure.status >= 500 else "Validation"
    return status, {"error": _message(failure), "error_type": kind}


def format_llamafactory_error(failure: ErrorDetails) -> tuple[int, Any]:
    """FastAPI's own: `detail`, and 422 with a list of them for a malformed body."""
    if isinstance(failure.error, AuthenticationError):
        return 401, {"detail": "Invalid API key."}
    if failure.field_errors:
        detail = [
            {"type": "value_error", "loc": ["body", *place.split(".")], "msg": text}
            for place, text in failure.field_errors
        ]
        return 422, {"detail": detail}
    return _status(failure), {"detail": _message(failure)}


def _message(failure: ErrorDetails) -> str:
    return truncate_for_message(failure.message, MAX_MESSAGE_LENGTH)


def _status(failure: ErrorDetails) -> int:
    if isinstance(failure.error, OverloadedError | TimeExceededError):
        return 503
    if isinstance(failure.error, UnsupportedMediaTypeError):
        return 400
    return failure.status


ERROR_FORMATS: Mapping[str, ErrorFormat] = {
    "/classify": format_vllm_error,
    "/pooling": format_vllm_error,
    "/tokenize": format_vllm_error,
    "/score": format_vllm_error,
    "/rerank": format_vllm_error,
    "/v1/rerank": format_vllm_error,
    "/v2/rerank": format_vllm_error,
    "/v1/embeddings": format_sglang_error,
    "/predict": format_tei_error,
    "/": format_tei_error,
    "/v1/score/evaluation": format_llamafactory_error,
    "/get_reward": format_openai_error,
    "/remote_rm": format_openai_error,
    "/v1/chat/completions": format_openai_error,
}
"""Of posts, by path. What is not here has our own."""
