"""Error formats of other services: status and body of a failed request, by path.

All code that rejects a request uses this table, also before the body is read. Overload and timeouts
are 503 in every format but that of text-embeddings-inference, whose clients expect 429: trainers
never retry after a 4xx.
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
    ModelAsleepError,
    TimeExceededError,
    UnknownModelError,
    UnsupportedMediaTypeError,
)


def format_openai_error(details: ErrorDetails) -> tuple[int, Any]:
    """Return the native error body, with the status that trainers expect."""
    _, body = format_native_error(details)
    return _status(details), body


def format_vllm_error(details: ErrorDetails) -> tuple[int, Any]:
    """Return vLLM's error: an object in `error` with the status as `code`; a string for a 401."""
    if isinstance(details.error, AuthenticationError):
        return 401, {"error": "Unauthorized"}
    status = _status(details)
    message = _message(details)
    param = details.param
    if details.field_errors:
        kind = "Bad Request"
        num_errors = len(details.field_errors)
        message = f"{num_errors} validation error{'s'[: num_errors > 1]}: {message}"
        param = f"body.{param}" if param else "body"
    elif isinstance(details.error, UnknownModelError):
        kind = "NotFoundError"
    elif status in (500, 503):
        kind = {500: "InternalServerError", 503: "Service Unavailable"}[status]
    elif status < 500 and status != HTTPStatus.FORBIDDEN and details.error is not None:
        kind = "BadRequestError"
    else:
        kind = HTTPStatus(status).phrase
    if isinstance(details.error, ConversationTooLongError):
        # vLLM's clients recognize this error by these words and this field.
        message = f"This model's maximum context length is exceeded: {message}"
        param = "input_tokens"
    error = {
        "message": message,
        "type": kind,
        "param": param and truncate_for_message(param),
        "code": status,
    }
    return status, {"error": error}


def format_sglang_error(details: ErrorDetails) -> tuple[int, Any]:
    """Return the flat error object of SGLang's routes below `/v1`."""
    if isinstance(details.error, AuthenticationError):
        return 401, {"error": "Unauthorized"}
    status, body = format_vllm_error(details)
    error = body["error"]
    if status == 400:
        error["type"] = "BadRequestError"
    return status, {"object": "error", **error}


def format_sglang_native_error(details: ErrorDetails) -> tuple[int, Any]:
    """Return the error of SGLang's `/classify`: a message only, or flat for a malformed body."""
    if details.field_errors or isinstance(details.error, AuthenticationError):
        return format_sglang_error(details)
    return _status(details), {"error": {"message": _message(details)}}


def format_tei_error(details: ErrorDetails) -> tuple[int, Any]:
    """Return the error of text-embeddings-inference: a message and an error type."""
    error = details.error
    if isinstance(error, NotReadyError | ModelAsleepError):
        status, kind = 503, "Unhealthy"
    elif isinstance(error, OverloadedError | TimeExceededError):
        status, kind = 429, "Overloaded"
    elif isinstance(error, ModelError):
        status, kind = 424, "Backend"
    elif isinstance(error, ConversationTooLongError):
        status, kind = 422, "Validation"
    elif error is not None and error.code == "empty_input":
        status, kind = 400, "Empty"
    elif details.status == 400:
        status, kind = 422, "Validation"
    else:
        status, kind = details.status, "Backend" if details.status >= 500 else "Validation"
    return status, {"error": _message(details), "error_type": kind}


def format_llamafactory_error(details: ErrorDetails) -> tuple[int, Any]:
    """Return FastAPI's error: `detail`; for a malformed body a 422 with a list as `detail`."""
    if isinstance(details.error, AuthenticationError):
        return 401, {"detail": "Invalid API key."}
    if details.field_errors:
        detail = [
            {"type": "value_error", "loc": ["body", *path.split(".")], "msg": text}
            for path, text in details.field_errors
        ]
        return 422, {"detail": detail}
    return _status(details), {"detail": _message(details)}


def _message(details: ErrorDetails) -> str:
    return truncate_for_message(details.message, MAX_MESSAGE_LENGTH)


def _status(details: ErrorDetails) -> int:
    if isinstance(details.error, OverloadedError | TimeExceededError):
        return 503
    if isinstance(details.error, UnsupportedMediaTypeError):
        return 400
    return details.status


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
    "/verify": format_openai_error,
    "/compare": format_openai_error,
    "/sleep": format_vllm_error,
    "/wake_up": format_vllm_error,
    "/release_memory_occupation": format_sglang_native_error,
    "/resume_memory_occupation": format_sglang_native_error,
    "/update_weights_from_disk": format_sglang_native_error,
}
"""Error formats by path, for requests with method POST; all others use the native format."""
