"""What is known of a request from its arrival to its answer, in one record for log and metrics.

The outermost middleware makes it and reads it at the end; what happens in between fills it in
through `current`. It never holds message text or a key.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

ANONYMOUS = "anonymous"
"""The client of all requests where there are no keys."""


@dataclass(slots=True)
class RequestContext:
    """One request.

    Attributes:
        id: taken from `X-Request-Id`, or made.
        client: whose fair share its work counts to: a name for the key that it came with (never
            the key itself), or `anonymous`.
        model: alias of the model that it asked for.
        num_conversations: that were to be scored.
        num_errors: of them that could not be.
        num_tokens: of those that were scored.
        num_computed_tokens: that went through the model for it.
        num_cached_tokens: of conversations answered from the cache.
        tokenize_s: seconds of rendering and tokenizing.
        queue_duration_s: seconds until its first conversation went to the model.
        inference_s: seconds of the batches that its conversations were in.
        code: of the error that it was answered with as a whole.
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
    """The record of the request that this code works for; one that nobody reads outside of any."""
    return _current.get() or RequestContext("-")


def bind_request(context: RequestContext) -> object:
    """Make a record the current one; `end` with what this returns."""
    return _current.set(context)


def unbind_request(token: object) -> None:
    """Undo `begin`."""
    _current.reset(token)  # type: ignore[arg-type]
