"""Error formats of other services: status and body of errors, path by path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from error_shapes import fits, flat, openai, tei, vllm
from fakes import FakeBackend, conversation, ready, serving
from fastapi.testclient import TestClient
from waiting import until

from rm_core import NotReadyError, OverloadedError, ScoreError
from serve.api.app import _ROUTERS
from serve.api.compat.errors import ERROR_FORMATS
from serve.api.compat.lifecycle import TRANSFER_PATHS
from serve.api.middleware.access import COMPAT_LIFECYCLE_PATHS, KeyRing
from serve.errors import DeadlineExceededError
from serve.scoring.service import ScoringService

TEXT = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
LONG = TEXT.replace("4", "word " * 300)
FOREIGN = "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n"
MESSAGES = conversation("4")
LONG_MESSAGES = conversation("word " * 300)

# A good body of each path.
GOOD: dict[str, dict[str, Any]] = {
    "/classify": {"input": [TEXT]},
    "/pooling": {"input": [TEXT]},
    "/tokenize": {"prompt": TEXT},
    "/v1/embeddings": {"input": [TEXT]},
    "/get_reward": {"query": [TEXT]},
    "/predict": {"inputs": [[TEXT]]},
    "/": {"inputs": [[TEXT]]},
    "/v1/score/evaluation": {"messages": [TEXT]},
    "/remote_rm": {"prompt": "2+2?", "response": "4"},
    "/v1/chat/completions": {"messages": MESSAGES},
    "/verify": {
        "responses_create_params": {"input": MESSAGES[:1]},
        "response": {"output": [MESSAGES[1]]},
    },
    "/compare": {
        "conversation_history": MESSAGES[:1],
        "response_objs": [{"output": [MESSAGES[1]]}] * 2,
    },
    "/score": {"queries": "2+2?", "documents": ["4"]},
    "/rerank": {"query": "2+2?", "documents": ["4"]},
    "/v1/rerank": {"query": "2+2?", "documents": ["4"]},
    "/v2/rerank": {"query": "2+2?", "documents": ["4"]},
}


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture(scope="module")
def client(backend: FakeBackend) -> Iterator[TestClient]:
    with serving(backend, cache_bytes=0, max_length=200) as client:
        until(lambda: ready(client))
        yield client


BAD_REQUEST = vllm(400, "BadRequestError")
TOO_LONG = vllm(400, "BadRequestError", "input_tokens")
INVALID = ("invalid_request_error", "bad_request")
LF_INVALID = {"detail": [{"type": "value_error", "loc": ["body", "messages"], "msg": str}]}

CASES: list[tuple[str, dict[str, Any], tuple[int, Any]]] = [
    # vLLM
    ("/classify", {"input": []}, BAD_REQUEST),
    ("/classify", {"input": 5}, vllm(400, "Bad Request", "body.input")),
    ("/classify", {"input": [1, "a"]}, vllm(400, "Bad Request", "body.input")),
    ("/classify", {}, vllm(400, "Bad Request", "body.input")),
    ("/classify", {"input": TEXT, "model": "nope"}, vllm(404, "NotFoundError")),
    ("/classify", {"input": [TEXT, LONG]}, TOO_LONG),
    ("/classify", {"messages": LONG_MESSAGES}, TOO_LONG),
    ("/classify", {"messages": [MESSAGES]}, vllm(400, "Bad Request", "body.messages.0")),
    ("/classify", {"messages": MESSAGES[:1]}, BAD_REQUEST),
    ("/classify", {"messages": []}, BAD_REQUEST),
    ("/classify", {"input": [[5, 10**6]]}, BAD_REQUEST),
    ("/classify", {"input": FOREIGN}, BAD_REQUEST),
    ("/classify", {"input": TEXT, "normalize": True}, vllm(400, "Bad Request", "body")),
    ("/classify", {"input": TEXT, "truncate_prompt_tokens": 0}, BAD_REQUEST),
    (
        "/classify",
        {"input": TEXT, "truncate_prompt_tokens": -2},
        vllm(400, "Bad Request", "body.truncate_prompt_tokens"),
    ),
    (
        "/classify",
        {"messages": MESSAGES, "add_generation_prompt": True},
        vllm(400, "Bad Request", "body"),
    ),
    ("/classify", {"messages": MESSAGES, "chat_template": "x"}, vllm(400, "Bad Request", "body")),
    ("/pooling", {"input": []}, BAD_REQUEST),
    ("/pooling", {"messages": [MESSAGES]}, vllm(400, "Bad Request", "body.messages.0")),
    ("/pooling", {"input": TEXT, "task": "embed"}, vllm(400, "Bad Request", "body")),
    ("/pooling", {"input": TEXT, "dimensions": 3}, vllm(400, "Bad Request", "body")),
    (
        "/pooling",
        {"input": TEXT, "encoding_format": "bytes"},
        vllm(400, "Bad Request", "body.encoding_format"),
    ),
    ("/tokenize", {"prompt": LONG}, TOO_LONG),
    ("/tokenize", {"prompt": 5}, vllm(400, "Bad Request", "body.prompt")),
    ("/score", {"messages": MESSAGES}, vllm(400, "Bad Request", "body")),
    ("/score", {"queries": ["a"] * 2, "documents": ["b"] * 3}, vllm(400, "Bad Request", "body")),
    ("/score", {"queries": [], "documents": []}, BAD_REQUEST),
    ("/rerank", {"query": "a", "documents": []}, BAD_REQUEST),
    ("/rerank", {"query": "a", "documents": 5}, vllm(400, "Bad Request", "body.documents")),
    ("/rerank", {"query": [], "documents": ["b", "c"]},
     vllm(400, "Bad Request", "body.query")),
    ("/rerank", {"query": ["a", "b"], "documents": ["c"]},
     vllm(400, "Bad Request", "body.query")),
    ("/v1/score", {"text_1": 5, "text_2": "b"}, vllm(400, "Bad Request", "body.text_1")),
    ("/v1/score", {"conversations": 5}, openai(400, *INVALID, "conversations")),
    # SGLang
    ("/classify", {"text": []}, (400, {"error": {"message": str}})),
    ("/classify", {"text": 5}, flat(400, "BadRequestError", "body.text")),
    ("/classify", {"text": [[1]]}, flat(400, "BadRequestError", "body")),
    ("/classify", {"input_ids": ["a"]}, flat(400, "BadRequestError", "body")),
    ("/classify", {"text": [TEXT, LONG]}, (400, {"error": {"message": str}})),
    ("/classify", {"text": FOREIGN}, (400, {"error": {"message": str}})),
    ("/v1/embeddings", {"input": []}, flat(400, "BadRequestError")),
    ("/v1/embeddings", {"input": 5}, flat(400, "BadRequestError", "body.input")),
    ("/v1/embeddings", {"input": LONG}, flat(400, "BadRequestError", "input_tokens")),
    # OpenRLHF, slime and NVIDIA's
    ("/get_reward", {"query": []}, openai(400, "invalid_request_error", "empty_input")),
    ("/get_reward", {"query": 5}, openai(400, *INVALID, "query.str")),
    ("/get_reward", {"query": [TEXT], "prompts": []}, openai(400, *INVALID)),
    ("/get_reward", {"query": [TEXT, FOREIGN]},
     openai(400, "invalid_request_error", "foreign_template")),
    ("/get_reward", {"query": [LONG]},
     openai(400, "invalid_request_error", "conversation_too_long")),
    ("/remote_rm", {"prompt": "a"}, openai(400, *INVALID, "response")),
    ("/remote_rm", {"prompt": [], "response": "b"},
     openai(400, "invalid_request_error", "invalid_conversation")),
    ("/remote_rm", {"prompt": FOREIGN, "response": "b"},
     openai(400, "invalid_request_error", "foreign_template")),
    ("/v1/chat/completions", {"messages": MESSAGES, "stream": True}, openai(400, *INVALID)),
    ("/v1/chat/completions", {"messages": [MESSAGES]}, openai(400, *INVALID, "messages.0")),
    ("/v1/chat/completions", {"messages": MESSAGES, "model": "nope"},
     openai(404, "not_found_error", "model_not_found")),
    # NeMo-Gym
    ("/verify", {"response": {}}, openai(400, *INVALID, "responses_create_params")),
    ("/verify", {**GOOD["/verify"], "skyreward": {"model": "a", "models": {"b": 1}}},
     openai(400, *INVALID, "skyreward")),
    ("/verify", {**GOOD["/verify"], "skyreward": {"model": "nope"}},
     openai(404, "not_found_error", "model_not_found")),
    ("/verify", {**GOOD["/verify"], "response": {"output": "4"}},
     openai(400, "invalid_request_error", "invalid_conversation")),
    ("/verify", {**GOOD["/verify"], "response": {"output": [{"type": "mcp_call"}]}},
     openai(400, "invalid_request_error", "invalid_conversation")),
    ("/verify", {**GOOD["/verify"], "response": {"output": [LONG_MESSAGES[1]]}},
     openai(400, "invalid_request_error", "conversation_too_long")),
    ("/compare", {**GOOD["/compare"], "response_objs": [{"output": [MESSAGES[1]]}, {}]},
     openai(400, "invalid_request_error", "invalid_conversation")),
    # text-embeddings-inference
    ("/predict", {"inputs": []}, tei(400, "Empty")),
    ("/predict", {"inputs": ""}, tei(400, "Empty")),
    ("/predict", {"inputs": 5}, tei(422, "Validation")),
    ("/predict", {"inputs": ["a", "b", "c"]}, tei(422, "Validation")),
    ("/predict", {"inputs": [[TEXT], [LONG]]}, tei(422, "Validation")),
    ("/predict", {"inputs": [[["a"]]]}, tei(422, "Validation")),
    ("/predict", {"inputs": TEXT, "model": "nope"}, tei(404, "Validation")),
    # LLaMA-Factory
    ("/v1/score/evaluation", {"messages": []}, (400, {"detail": "Invalid request"})),
    ("/v1/score/evaluation", {"messages": 5}, (422, LF_INVALID)),
    ("/v1/score/evaluation", {"messages": [TEXT, LONG]}, (400, {"detail": str})),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "expected"), CASES)
def test_bad_body_gets_error_format_of_path(
    client: TestClient, path: str, body: dict[str, Any], expected: tuple[int, Any]
) -> None:
    answer = client.post(path, json=body)
    assert (answer.status_code, fits(answer.json(), expected[1])) == (expected[0], True), (
        answer.text[:500]
    )


def test_error_names_index_of_bad_input(client: TestClient) -> None:
    answer = client.post("/classify", json={"input": [TEXT, TEXT, LONG]})
    assert "input 2 of 3: the conversation has" in answer.json()["error"]["message"]
    assert "maximum context length" in answer.json()["error"]["message"]
    hinted = client.post("/get_reward", json={"query": [FOREIGN]}).json()["error"]["message"]
    assert "policy_template" in hinted


def test_every_compat_path_has_error_format() -> None:
    paths = {
        route.path  # type: ignore[attr-defined]
        for router in _ROUTERS
        for route in router.routes
        if "POST" in getattr(route, "methods", ())
    }
    native = {"/v1/score", "/v1/steps", "/v1/compare", "/v1/rank", "/v1/render"}
    unscored = {"/seed_session", "/aggregate_metrics"}
    lifecycle = {
        *COMPAT_LIFECYCLE_PATHS,
        *TRANSFER_PATHS,
        *(p for p in paths if p.startswith("/v1/models/")),
    }
    scored = paths - native - unscored - lifecycle
    assert scored == set(GOOD) == set(ERROR_FORMATS) - COMPAT_LIFECYCLE_PATHS


@pytest.mark.parametrize("path", GOOD)
def test_good_body_is_scored(client: TestClient, path: str) -> None:
    answer = client.post(path, json=GOOD[path])
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-skyreward-model"] == "demo"
    assert answer.headers["x-skyreward-input"]


def expected_overload(path: str) -> int:
    return 429 if path in ("/predict", "/") else 503


@pytest.mark.parametrize("path", GOOD)
def test_overload_has_retry_after(
    client: TestClient, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OverloadedError("no room")

    monkeypatch.setattr(ScoringService, "check_any_capacity", full)
    # The middleware rejects before the body is read, but keeps the original `check_any_capacity`.
    monkeypatch.setattr("serve.scoring.served_model.ServedModel.check_capacity", full)
    answer = client.post(path, json=GOOD[path])
    assert answer.status_code == expected_overload(path)
    assert int(answer.headers["retry-after"]) > 0
    assert "no room" in answer.text


@pytest.mark.parametrize("path", [path for path in GOOD if path != "/tokenize"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotReadyError("being replaced"), (503, 503)),
        (DeadlineExceededError("too late"), (503, 429)),
        (RuntimeError("secret"), (500, 500)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_service_failure_keeps_error_format_of_path(
    client: TestClient,
    path: str,
    error: Exception,
    status: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ScoringService, "score", broken)
    answer = client.post(path, json=GOOD[path])
    is_tei = path in ("/predict", "/")
    assert answer.status_code == status[is_tei]
    assert ("retry-after" in answer.headers) == (answer.status_code in (429, 503))
    assert "secret" not in answer.text
    assert set(answer.json()) <= {"error", "error_type", "detail", "object", "message", "type",
                                  "param", "code"}  # fmt: skip


@pytest.mark.parametrize("path", [path for path in GOOD if path != "/tokenize"])
def test_scoring_error_is_server_error(client: TestClient, backend: FakeBackend, path: str) -> None:
    backend.reward = lambda ids: ScoreError("non_finite_reward", "NaN")
    try:
        answer = client.post(path, json=GOOD[path])
    finally:
        backend.reward = lambda ids: float(len(ids))
    assert answer.status_code == (424 if path in ("/predict", "/") else 500)
    assert "NaN" in answer.text


@pytest.mark.parametrize("path", GOOD)
def test_middleware_rejections_use_error_format_of_path(path: str, client: TestClient) -> None:
    app: Any = client.app
    wrong_type = client.post(path, content=b"x", headers={"Content-Type": "text/plain"})
    assert wrong_type.status_code == (415 if path in ("/predict", "/") else 400)
    not_json = client.post(path, content=b"{", headers={"Content-Type": "application/json"})
    assert not_json.status_code == (422 if path in ("/predict", "/") else 400)
    large = client.post(path, content=b"x", headers={
        "Content-Type": "application/json", "Content-Length": str(2**40),
    })  # fmt: skip
    assert large.status_code == 413
    before, app.state.keys = app.state.keys, KeyRing([("a" * 20, "here")])
    try:
        no_key = client.post(path, json=GOOD[path])
    finally:
        app.state.keys = before
    assert no_key.status_code == 401
    assert no_key.headers["www-authenticate"] == "Bearer"
    for answer in (wrong_type, not_json, large, no_key):
        body = answer.json()
        if path in ("/predict", "/"):
            assert body.keys() == {"error", "error_type"}
        elif path == "/v1/score/evaluation":
            assert body.keys() == {"detail"}
        else:
            assert "error" in body or body["object"] == "error"
