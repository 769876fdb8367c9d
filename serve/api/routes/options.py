"""Refuses options of a body that a model of its kind does not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from rm_core.config import Kind
from serve.errors import BadRequestError
from serve.scoring.served_model import KIND_NAMES, ServedModel

_UNREAD: Mapping[Kind, Sequence[str]] = {
    "classifier": ("aggregation", "orders"),
    "step": ("truncation", "orders", "tools"),
    "judge": ("truncation", "aggregation", "tools"),
}


def check_options(body: BaseModel, model: ServedModel) -> None:
    """Return if every option that the model does not read has its default.

    Raises:
        BadRequestError: an option has another value, which would be ignored.
    """
    kind = model.encoder.kind
    fields = type(body).model_fields
    for name in _UNREAD[kind]:
        if name in fields and getattr(body, name) != fields[name].default:
            reason = ", since nothing is cut off" if name == "truncation" else ""
            raise BadRequestError(
                f"{KIND_NAMES[kind]} does not read `{name}`{reason}; leave the field out"
            )
