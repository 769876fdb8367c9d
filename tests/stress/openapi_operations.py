"""What a service's OpenAPI document says: its operations, and an example body of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one route; `example` is a body that works, None if there is none."""

    method: str
    path: str
    takes_body: bool
    example: Any


def controls_models(path: str) -> bool:
    """Whether a route puts models to sleep, wakes them or replaces their weights."""
    return path.startswith("/v1/models/") or path in (
        "/sleep",
        "/wake_up",
        "/release_memory_occupation",
        "/resume_memory_occupation",
        "/update_weights_from_disk",
    )


def operations_of(document: Mapping[str, Any]) -> list[Operation]:
    """All of them, in the document's order."""
    return [
        Operation(method.upper(), path, "requestBody" in operation, _example(operation, document))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in ("get", "post", "put", "patch", "delete")
    ]


def _example(operation: Mapping[str, Any], document: Mapping[str, Any]) -> Any:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if "example" in content:
        return content["example"]
    if examples := content.get("examples"):
        return next(iter(examples.values()))["value"]
    return _of_schema(content.get("schema", {}), document)


def _of_schema(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Any:
    if reference := schema.get("$ref"):
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        return _of_schema(target, document)
    if examples := schema.get("examples"):
        return examples[0]
    if "example" in schema:
        return schema["example"]
    for kind in ("anyOf", "oneOf", "allOf"):
        for option in schema.get(kind, ()):
            if (found := _of_schema(option, document)) is not None:
                return found
    return None
