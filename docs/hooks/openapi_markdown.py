"""An OpenAPI document as Markdown: no script is needed to read it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from markdown_text import cell, code, table

# Schemas that the document repeats inline, by their properties.
_INLINE = {
    frozenset({"role", "content", "tool_calls"}): "Message",
    frozenset({"messages", "tools"}): "Chat",
    frozenset({"prompt", "chosen", "rejected", "tools"}): "Pair",
    frozenset({"type", "text"}): "TextPart",
}
_ABOUT_INLINE = {
    "Chat": "A conversation with the tools that it offers.",
    "Message": "One turn of a conversation. Other keys are passed to the chat template.",
    "Pair": "Two answers to one prompt, or two whole conversations.",
    "TextPart": "A part of a message.",
}
_OUR_TAGS = {"scoring": "Scoring", "status": "Status"}  # others are names of projects
_ERRORS = range(400, 600)


def render_routes(document: Mapping[str, Any]) -> str:
    """A section for each tag, in which each route has one of its own."""
    lines: list[str] = []
    seen = None
    for path, method, operation in _operations(document):
        tag = operation["tags"][0]
        if tag != seen:
            lines += [f"## {_OUR_TAGS.get(tag, tag)}", ""]
            seen = tag
        lines += _render_operation(path, method, operation)
    return "\n".join(lines)


def render_schemas(document: Mapping[str, Any]) -> str:
    """A section for each schema: its fields."""
    schemas = dict(document["components"]["schemas"])
    for schema in _walk(document):
        if name := _inline_name(schema):
            schemas[name] = {"description": _ABOUT_INLINE[name], **schema}
    lines: list[str] = []
    for name in sorted(schemas, key=_title):
        schema = schemas[name]
        lines += [f"### {_title(name)} {{ #{_anchor(name)} }}", "", schema.get("description", "")]
        lines += ["", _render_fields(schema), ""]
    return "\n".join(lines)


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Routes by tag, tags and routes in the order in which the document has them."""
    routes = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    tags = list(dict.fromkeys(operation["tags"][0] for _, _, operation in routes))
    yield from sorted(routes, key=lambda route: tags.index(route[2]["tags"][0]))


def _render_operation(path: str, method: str, operation: Mapping[str, Any]) -> list[str]:
    anchor = f"{method}{path}".replace("/", "-").replace("_", "-")
    lines = [f"### {method.upper()} {path} {{ #{anchor} }}", ""]
    lines += [f"{operation['summary']}. {operation.get('description', '')}".strip(), ""]
    for parameter in operation.get("parameters", ()):
        about = parameter.get("description") or parameter["schema"].get("description", "")
        lines += [f"- {parameter['in'].title()} {code(parameter['name'])}: {cell(about)}"]
    content = operation.get("requestBody", {}).get("content", {})
    for schema in (item["schema"] for item in content.values()):
        lines += [f"- Body: {_type_of(schema)}"]
    for status, response in operation["responses"].items():
        if int(status) not in _ERRORS:
            lines += [f"- Status {status}: {_answer(response)}"]
    errors = [status for status in operation["responses"] if int(status) in _ERRORS]
    if errors:
        lines += [f"- [Errors](errors.md#statuses): {', '.join(errors)}"]
    return [*lines, ""]


def _answer(response: Mapping[str, Any]) -> str:
    for kind, content in response.get("content", {}).items():
        if kind != "application/json":
            return code(kind)
        if content["schema"]:
            return _type_of(content["schema"])
    return "JSON"


def _render_fields(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = []
    for name, field in schema.get("properties", {}).items():
        default = "required" if name in required else code(json.dumps(field.get("default")))
        rows.append([code(name), _type_of(field), default, cell(field.get("description", ""))])
    lines = [table(["field", "type", "default", "description"], rows)] if rows else []
    for example in schema.get("examples", ()):
        text = json.dumps(example, ensure_ascii=False, indent=2)
        lines.append(f"```json\n{text}\n```\n")
    return "\n".join(lines)


def _type_of(schema: Mapping[str, Any]) -> str:
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{_title(name)}](#{_anchor(name)})"
    if name := _inline_name(schema):
        return f"[{name}](#{_anchor(name)})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(map(_type_of, schema[several])))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(code(json.dumps(value)) for value in values)
    if schema.get("type") == "array":
        items = schema.get("prefixItems")
        inner = ", ".join(map(_type_of, items)) if items else _type_of(schema.get("items", {}))
        return f"list of ({inner})" if " " in inner and "](" not in inner else f"list of {inner}"
    return str(schema.get("type", "any")) + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    words = {"minimum": "at least", "maximum": "at most"}
    found = (f"{text} {schema[name]:.15g}" for name, text in words.items() if name in schema)
    return "".join(f", {bound}" for bound in found)


def _inline_name(schema: Mapping[str, Any]) -> str | None:
    properties = schema.get("properties")
    return _INLINE.get(frozenset(properties)) if isinstance(properties, dict) else None


def _walk(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a document."""
    values: Iterable[Any] = ()
    if isinstance(node, dict):
        yield node
        values = node.values()
    elif isinstance(node, list):
        values = node
    for value in values:
        yield from _walk(value)


def _title(name: str) -> str:
    return name.lstrip("_")


def _anchor(name: str) -> str:
    return f"schema-{_title(name).lower()}"
