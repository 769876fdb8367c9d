"""Facts about a request, from its arrival to its response, in one record for log and metrics.

The outermost middleware creates the record and reads it at the end; the code in between fills it in
through `current_request`. The record never holds message text or an API key.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

ANONYMOUS = "anonymous"
"""Name of the client of all requests in a service without API keys."""


@dataclass(slots=True)
class RequestContext:
    """The record of one request.

    Attributes:
        id: request id, from `X-Request-Id` or generated.
        client: client whose fair share the request counts toward: a name derived from its API key
            (never the key itself), or `anonymous`.
        model: alias of the requested model.
        num_conversations: number of conversations to score.
        num_errors: number of conversations that could not be scored.
        num_tokens: tokens of the scored conversations.
        num_computed_tokens: tokens that went through the model for this request.
        num_cached_tokens: tokens of conversations answered from the cache.
        tokenize_s: seconds of rendering and tokenizing.
        queue_duration_s: seconds until the request's first conversation went to the model.
        inference_s: seconds of the forward passes of the batches with the request's conversations.
        code: code of the error, where the request failed as a whole.
    """

    id: str
    client: str = ANONYMOUS
    model: str | None = None
    num_conversations: int = 0
    num_errors: int = 0
    num_tokens: int = 0
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    tokenize_s: float = 0.0
    queue_duration_s: float = 0.0
    inference_s: float = 0.0
    code: str | None = None


_current: ContextVar[RequestContext | None] = ContextVar("request", default=None)


def current_request() -> RequestContext:
    """Return the record of the current request; outside of a request, a record nobody reads."""
    return _current.get() or RequestContext("-")


def bind_request(context: RequestContext) -> object:
    """Make a record the current one; pass the returned token to `unbind_request`."""
    return _current.set(context)


def unbind_request(token: object) -> None:
    """Undo `bind_request`."""
    _current.reset(token)  # type: ignore[arg-type]
