"""Bodies that are not strict JSON: each is rejected with 400, or with an error in its result."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import FakeBackend, conversation, ready, serving
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from waiting import until

from rm_core.strict_json import MAX_DEPTH
from serve.api.routing import parse_json
from serve.errors import BadRequestError

ROUTES = ("/v1/score", "/v1/compare", "/v1/rank", "/v1/render")
HEADERS = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with serving(FakeBackend()) as client:
        until(lambda: ready(client))
        yield client


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


BAD = {
    "empty": (b"", "empty"),
    "white space": (b" \n\t ", "empty"),
    "no JSON": (b"{'a': 1}", "at character 1"),
    "cut off": (b'{"conversations": [', "at character"),
    "two values": (b"{} {}", "at character 3"),
    "deep lists": (nested(100_000).encode(), "lists and objects"),
    "open lists": (b"[" * 100_000, "lists and objects"),
    "deep enough for Python": (nested(MAX_DEPTH + 1).encode(), "lists and objects"),
    "deep objects": (nested(500, '{"a":[', "]}").encode(), "lists and objects"),
    "long integer": (b'{"model": ' + b"9" * 5_000 + b"}", "4,300 digits"),
    "long exponent": (b'{"model": 1e999999}', "too large"),
    "infinite": (b'{"model": -Infinity}', "-Infinity"),
    "NaN": (b'{"conversations": [NaN]}', "NaN"),
    "equal keys": (b'{"model": "demo", "model": "rm"}', "'model' occurs twice"),
    "equal keys inside": (b'{"conversations": [[{"role": "user", "role": "x"}]]}', "'role' occurs"),
    "Latin-1": ('{"model": "é"}'.encode("latin-1"), "at byte 11"),
    "UTF-16": ('{"model": "x"}'.encode("utf-16"), "at byte 0"),
    "surrogate in UTF-8": (b'{"model": "\xed\xa0\xbd"}', "at byte 11"),
    "NUL": (b'{"model": "\0"}', "control character"),
    "only NUL": (b"\0", "at character 0"),
    "number": (b"5", "object"),
    "string": (b'"text"', "object"),
    "null": (b"null", "object"),
    "list": (b"[]", "object"),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", BAD)
def test_invalid_body_is_400_with_reason(client: TestClient, route: str, name: str) -> None:
    body, expected = BAD[name]
    answer = client.post(route, content=body, headers=HEADERS)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "bad_request")
    assert expected in error["message"]
    assert len(answer.content) < 1_000


LONE = "\\ud83d"
ODD_CONVERSATIONS = {
    "lone surrogate": f'[{{"role": "user", "content": "{LONE}"}}]',
    "lone surrogate as role": f'[{{"role": "{LONE}", "content": "x"}}]',
    "lone surrogate in a part": f'[{{"role": "user", "content": [{{"text": "{LONE}"}}]}}]',
    "long role": f'[{{"role": "{"x" * 100_000}", "content": "x"}}]',
    "deep role": f'[{{"role": {nested(90)}, "content": "x"}}]',
    "deep content": f'[{{"role": "user", "content": {nested(90)}}}]',
    "huge numbers": f"[{'9' * 4_000}, 1e308, {{}}]",
    "number": "17",
    "NUL as role": '[{"role": "\\u0000", "content": "x"}]',
}


@pytest.mark.parametrize("name", ODD_CONVERSATIONS)
def test_odd_conversation_fails_alone(client: TestClient, name: str) -> None:
    odd, good = ODD_CONVERSATIONS[name], json.dumps(conversation("4"))
    bodies = {
        "/v1/score": f'{{"conversations": [{odd}, {good}]}}',
        "/v1/render": f'{{"conversations": [{odd}, {good}]}}',
        "/v1/rank": f'{{"prompt": "2+2?", "responses": [{odd}, "4"]}}',
    }
    for route, body in bodies.items():
        answer = client.post(route, content=body.encode(), headers=HEADERS)
        assert answer.status_code == 200
        failed, scored = answer.json()["results"]
        assert failed["error"]["code"] == "invalid_conversation"
        assert len(failed["error"]["message"]) < 500
        assert "error" not in scored
    pair = f'{{"pairs": [{{"chosen": {odd}, "rejected": {good}}}]}}'
    (only,) = client.post("/v1/compare", content=pair.encode(), headers=HEADERS).json()["results"]
    assert only["error"]["code"] == "invalid_conversation"


def test_nul_in_text_and_bom_are_accepted(client: TestClient) -> None:
    body = json.dumps({"conversations": [conversation("a\0b")]}).encode()
    for sent in (body, b"\xef\xbb\xbf" + body):
        answer = client.post("/v1/score", content=sent, headers=HEADERS)
        assert answer.status_code == 200
        assert "reward" in answer.json()["results"][0]


@pytest.mark.parametrize(
    "body",
    [
        {"conversations": [], **{f"key{i}" * 10: 1 for i in range(1_000)}},
        {"conversations": [], "k" * 1_000_000: 1},
        {"conversations": [], "\ud83d": 1},
        {"conversations": [], "truncation": "\ud83d" * 1_000},
        {"conversations": [], "model": ["x" * 1_000_000]},
        {"pairs": "x" * 1_000_000},
    ],
)
def test_validation_errors_are_short_and_valid_unicode(client: TestClient, body: Any) -> None:
    answer = client.post("/v1/score", content=json.dumps(body).encode(), headers=HEADERS)
    assert answer.status_code == 400
    assert len(answer.content) < 4_000
    assert answer.json()["error"]["code"] == "bad_request"


def test_error_of_pair_with_many_long_keys_is_short(client: TestClient) -> None:
    pair = {f"{i}" * 1_000: 1 for i in range(1_000)}
    (result,) = client.post("/v1/compare", json={"pairs": [pair]}).json()["results"]
    assert len(result["error"]["message"]) < 1_000
    assert "992 more" in result["error"]["message"]


def test_long_model_name_is_truncated_in_error(client: TestClient) -> None:
    for name in ("\ud83d", "x" * 1_000_000):
        body = json.dumps({"conversations": [], "model": name}).encode()
        answer = client.post("/v1/score", content=body, headers=HEADERS)
        assert answer.status_code == 404
        assert len(answer.content) < 4_000


def test_every_route_with_body_parses_json_strictly(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    routes = [path for path, operations in paths.items() if "post" in operations]
    assert set(routes) >= set(ROUTES)
    for route in routes:  # only a `JsonRoute` has this message
        answer = client.post(route, content=b'{"x": NaN}', headers=HEADERS)
        assert answer.status_code in (400, 422)
        assert "NaN, and JSON allows only finite numbers" in str(answer.json())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@given(JSON)
def test_valid_json_is_parsed_like_python(value: Any) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)
        try:
            body = text.encode()
        except UnicodeEncodeError:
            continue
        assert parse_json(body) == value


@given(st.binary(max_size=200) | st.text('[]{}":,\\u0dE-1NaInfty ', max_size=40).map(str.encode))
def test_arbitrary_bytes_are_parsed_or_rejected(body: bytes) -> None:
    try:
        expected = json.loads(body)
    except (ValueError, RecursionError):
        with pytest.raises(BadRequestError) as caught:
            parse_json(body)
        assert len(caught.value.detail) < 500
        return
    with contextlib.suppress(BadRequestError):  # stricter than Python, but the same value
        assert parse_json(body) == expected


@given(st.integers(1, 300), st.sampled_from(["[", '{"a":']))
def test_nesting_depth_limit_is_exact(depth: int, opening: str) -> None:
    body = (opening * depth + "1" + ("]" if opening == "[" else "}") * depth).encode()
    if depth <= MAX_DEPTH:
        assert parse_json(body) == json.loads(body)
    else:
        with pytest.raises(BadRequestError, match="lists and objects"):
            parse_json(body)


@given(st.data())
def test_mutated_bodies_never_cause_server_error(client: TestClient, data: st.DataObject) -> None:
    body = bytearray(
        json.dumps({"conversations": [conversation("4"), conversation("é 😀")]}).encode()
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        replacement = data.draw(
            st.sampled_from([b"", b'"', b"[", b"}", b",", b"\\", b"\xff", b"1e9", b"null"])
        )
        body[at : at + data.draw(st.integers(0, 3))] = replacement
    answer = client.post("/v1/score", content=bytes(body), headers=HEADERS)
    assert answer.status_code in (200, 400, 404)
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
