"""What the OpenAPI document says besides what FastAPI makes of the routes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from serve.api.error_responses import ERROR_SPECS
from serve.api.middleware.stack import OPEN_PATHS
from serve.api.schemas import ErrorResponse
from serve.errors import AuthenticationError

_SCHEME = {"type": "http", "scheme": "bearer", "description": "one of the service's API keys"}


def install(app: FastAPI, *, with_keys: bool) -> None:
    """Let the document tell how malformed bodies and missing keys are answered.

    Args:
        app: with all its routes.
        with_keys: whether requests must bring one.
    """
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        _drop_422(document)
        if with_keys:
            _add_keys(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _drop_422(document: dict[str, Any]) -> None:
    """FastAPI's own, with its schemas: malformed bodies are answered 400."""
    for path in document["paths"].values():
        for operation in path.values():
            # Some clients know 422 from their own service, which is documented without a schema.
            if "content" in operation["responses"].get("422", {}):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)


def _add_keys(document: dict[str, Any]) -> None:
    components = document.setdefault("components", {})
    components.setdefault("securitySchemes", {})["key"] = _SCHEME
    schema = {"$ref": f"#/components/schemas/{ErrorResponse.__name__}"}
    answer = {
        "description": ERROR_SPECS[AuthenticationError].description,
        "content": {"application/json": {"schema": schema}},
    }
    for name, path in document["paths"].items():
        for operation in path.values():
            operation["security"] = [] if name in OPEN_PATHS else [{"key": []}]
            if name not in OPEN_PATHS:
                operation["responses"].setdefault("401", answer)
