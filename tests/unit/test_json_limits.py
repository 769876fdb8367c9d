"""Bodies with very many values: rejected before parsing, or with few validation errors."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import FakeBackend, conversation, ready, serving
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from waiting import until

from serve.api import routing
from serve.api.routing import MAX_FIELDS, check_fields, check_values, parse_json
from serve.config.settings import Settings
from serve.errors import BadRequestError

HEADERS = {"Content-Type": "application/json"}
DEFAULT = Settings.load()
SMALL = Settings.load(max_conversations=1, max_messages=1)  # 120 lists and objects
WRONG_ITEMS: dict[str, Any] = {"number": 1, "object": {}, "list": [], "null": None, "text": "x"}
MAX_VALIDATION_ERRORS = 20


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with serving(FakeBackend()) as client:
        until(lambda: ready(client))
        yield client


@pytest.fixture
def error_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of validation errors of the malformed bodies of a test."""
    error_counts: list[int] = []
    errors = RequestValidationError.errors

    def count_errors(self: RequestValidationError) -> Any:
        error_counts.append(len(errors(self)))
        return errors(self)

    monkeypatch.setattr(RequestValidationError, "errors", count_errors)
    return error_counts


def documented_fields(client: TestClient) -> dict[str, list[str]]:
    """Names of the fields that each route documents for its body, where it has any."""
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]

    def names(schema: dict[str, Any]) -> set[str]:
        if "$ref" in schema:
            return names(schemas[schema["$ref"].rpartition("/")[2]])
        either = [names(s) for word in ("oneOf", "anyOf") for s in schema.get(word, ())]
        return set(schema.get("properties", ())).union(*either)

    fields = {
        path: sorted(names(body["content"]["application/json"]["schema"]))
        for path, methods in document["paths"].items()
        for operation in methods.values()
        if (body := operation.get("requestBody"))
    }
    return {path: found for path, found in fields.items() if found}


def test_wrong_items_give_few_validation_errors(
    client: TestClient, error_counts: list[int]
) -> None:
    routes = documented_fields(client)
    assert len(routes) > 12
    for path, fields in routes.items():
        for item in WRONG_ITEMS.values():
            # Each field alone, and all fields: a validator of the whole body may run first.
            bodies = [{field: [item] * 300} for field in fields]
            bodies.append({field: [item] * 300 for field in fields})
            for body in bodies:
                answer = client.post(path, json=body)
                assert len(answer.content) < 10_000 or answer.status_code == 200, (path, body)
    assert error_counts
    assert max(error_counts) <= MAX_VALIDATION_ERRORS


def test_validation_error_names_index_of_wrong_item(client: TestClient) -> None:
    body = {"messages": ["x", "y", 7, 8, 9]}
    answer = client.post("/v1/score/evaluation", json=body)
    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert error["loc"] == ["body", "messages", "2"]
    assert "string" in error["msg"]


def test_thousands_of_unknown_fields_give_one_error(
    client: TestClient, error_counts: list[int]
) -> None:
    for path in documented_fields(client):
        for number, limit in ((101, f"{MAX_FIELDS}"), (30_000, "10,020")):
            answer = client.post(path, json={f"key{i}": 1 for i in range(number)})
            assert 400 <= answer.status_code < 500
            if answer.status_code == 413:  # a route that controls models takes 64 KiB
                continue
            assert f"{number:,} fields and the limit is {limit}" in answer.text
    assert error_counts == []


def test_unknown_field_is_named(client: TestClient) -> None:
    body = {"conversations": [conversation("4")], "temperature": 1}
    answer = client.post("/v1/score", json=body)
    assert answer.status_code == 400
    assert "temperature: unknown field" in answer.json()["error"]["message"]


MANY = {
    "lists": (b'{"conversations": [' + b"[]," * 600_000 + b"[]]}", "600,003 lists and objects"),
    "objects": (b'{"conversations": [' + b"{}," * 600_000 + b"{}]}", "600,003 lists and objects"),
    "nested": (b'{"pairs": [' + b'[{"a":[]}],' * 200_000 + b"[]]}", "600,003 lists and objects"),
    "strings": (b'{"query": [' + b'"",' * 2_100_000 + b'""]}', "2,100,002 strings"),
    "names": (
        b'{"": [{' + b'"":0,' * 100_000 + b'"":0}]}',
        "100,002 fields and the limit is 10,040",
    ),
}


@pytest.mark.parametrize("name", MANY)
def test_too_many_values_are_rejected_before_parsing(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(body: bytes, *, yield_gil: bool) -> Any:
        raise AssertionError("the body was parsed")

    monkeypatch.setattr(routing, "parse_json", fail)
    body, expected = MANY[name]
    answer = client.post("/v1/score", content=body, headers=HEADERS)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert expected in message


def test_too_many_texts_are_rejected(client: TestClient) -> None:
    for item in ("x" * 10, 1):
        answer = client.post("/v1/score/evaluation", json={"messages": [item] * 20_001})
        assert answer.status_code == 400
        assert "20,001 items in `messages` and the limit is 20,000" in answer.json()["detail"]


MESSAGES = [
    {"role": "system", "content": "x"},
    {"role": "user", "content": [{"type": "text", "text": "x"}]},
    {"role": "assistant", "content": 'say "{[:,]}" \\'},
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": "x"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"properties": {f"p{i}": {"type": "string"} for i in range(700)}},
    },
}


@pytest.mark.parametrize(
    "body",
    [
        {"conversations": [MESSAGES] * 20_000},
        {"messages": MESSAGES * 200, "tools": [TOOL] * 20},
        {"input_ids": [list(range(10_000, 14_000))] * 500},
        {"text": ["[[[{{{" * 10_000] * 10, "rid": '":' * 100_000},
        {"conversations": [[MESSAGES[3], {"role": "assistant", "content": '{"a": 1}' * 200_000}]]},
    ],
    ids=["many conversations", "tools of many keys", "token ids", "brackets in text", "JSON text"],
)
def test_large_ordinary_bodies_are_accepted(body: Any) -> None:
    text = json.dumps(body).encode()
    check_values(text, DEFAULT)
    value = parse_json(text, yield_gil=True)
    assert value == body
    check_fields(value, DEFAULT)


def test_value_limits_follow_settings() -> None:
    body = json.dumps({"conversations": [[]] * 119}).encode()
    with pytest.raises(BadRequestError, match="121 lists and objects and the limit is 120"):
        check_values(body, SMALL)
    check_values(json.dumps({"conversations": [[]] * 118}).encode(), SMALL)


json_values = st.recursive(
    st.none() | st.integers() | st.text(st.characters(codec="utf-8")) | st.text('\\"[{:,n/'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('\\"{[:x'), inner),
)


def count_values(value: Any) -> tuple[int, int, int, int]:
    """Numbers of lists, objects, names and strings."""
    if isinstance(value, str):
        return 0, 0, 0, 1
    if not isinstance(value, list | dict):
        return 0, 0, 0, 0
    inner = [count_values(v) for v in (value.values() if isinstance(value, dict) else value)]
    lists, objects, names, strings = map(sum, zip(*inner, (0,) * 4, strict=True))
    if isinstance(value, list):
        return lists + 1, objects, names, strings
    return lists, objects + 1, names + len(value), strings + len(value)


@given(json_values, st.booleans(), st.integers(1, 9))
def test_byte_counts_equal_parsed_value_counts(value: Any, ascii_only: bool, size: int) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "_BLOCK_BYTES", size)
        counts = routing._count_bytes_outside_strings(body)
    assert tuple(counts[ord(c)] for c in '[{:"') == count_values(value)


def test_garbage_collector_is_enabled_after_large_body(client: TestClient) -> None:
    good = json.dumps({"pairs": [], "model": "x" * 300_000}).encode()
    for body in (good, good[:-1]):
        assert client.post("/v1/compare", content=body, headers=HEADERS).status_code in (400, 404)
        assert gc.isenabled()
