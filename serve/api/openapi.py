"""Additions to the OpenAPI document that FastAPI generates from the routes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from serve.api.error_responses import ERROR_SPECS
from serve.api.middleware.access import OPEN_PATHS
from serve.api.schemas import ErrorResponse
from serve.errors import AuthenticationError

_SCHEME = {"type": "http", "scheme": "bearer", "description": "one of the service's API keys"}


def install(app: FastAPI, *, with_keys: bool) -> None:
    """Document the responses to malformed bodies and to missing API keys."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        _drop_422(document)
        if with_keys:
            _add_keys(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _drop_422(document: dict[str, Any]) -> None:
    """Remove FastAPI's 422 responses and their schemas: the response to a malformed body is 400."""
    for path in document["paths"].values():
        for operation in path.values():
            # A 422 for clients of another service is documented without a schema, and stays.
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
