"""Error formats of other services: a status, and a body in which a type matches any value of it."""

from __future__ import annotations

from typing import Any


def vllm(status: int, kind: str, param: str | None = None) -> tuple[int, Any]:
    return status, {"error": {"message": str, "type": kind, "param": param, "code": status}}


def flat(status: int, kind: str, param: str | None = None) -> tuple[int, Any]:
    return status, {
        "object": "error", "message": str, "type": kind, "param": param, "code": status,
    }  # fmt: skip


def openai(status: int, kind: str, code: str, param: str | None = None) -> tuple[int, Any]:
    return status, {"error": {"message": str, "type": kind, "param": param, "code": code}}


def tei(status: int, kind: str) -> tuple[int, Any]:
    return status, {"error": str, "error_type": kind}


def fits(body: Any, shape: Any) -> bool:
    """Return whether a body has a shape, in which a type matches any value of that type."""
    if isinstance(shape, dict):
        return (
            isinstance(body, dict)
            and body.keys() == shape.keys()
            and all(fits(body[key], shape[key]) for key in shape)
        )
    if isinstance(shape, list):
        return isinstance(body, list) and all(fits(b, s) for b, s in zip(body, shape, strict=True))
    return isinstance(body, shape) if isinstance(shape, type) else bool(body == shape)
