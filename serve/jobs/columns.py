"""Where the parts of a record are, if the caller says so; paths with dots reach into structs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns by name; with none named, they are recognized.

    `a.b` is the column of that name if there is one, else `b` within the struct `a`; in a list of
    structs, `b` of each.

    Attributes:
        messages: whole conversations.
        prompt: text or messages.
        response: one answer.
        responses: answers of a group; several columns are put together in this order.
        chosen: the better answer or conversation.
        rejected: the worse one.
    """

    messages: str | None = None
    prompt: str | None = None
    response: str | None = None
    responses: tuple[str, ...] = ()
    chosen: str | None = None
    rejected: str | None = None


AS_USUAL = Columns()
