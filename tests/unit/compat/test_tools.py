"""`tools`, tool calls and single conversations over HTTP, native and in other services' bodies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeBackend, ready, serving
from fastapi.testclient import TestClient
from waiting import until

# Renders tools and tool calls as Qwen's templates do.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
)
TOOLS = [{"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}]
OTHER = [{"type": "function", "function": {"name": "a_name_that_is_longer"}}]
ASK, ANSWER = {"role": "user", "content": "Tide?"}, {"role": "assistant", "content": "At six."}
MESSAGES = [ASK, ANSWER]


def with_call(arguments: object) -> list[dict[str, Any]]:
    call = {"id": "c", "type": "function", "function": {"name": "tide", "arguments": arguments}}
    request = {"role": "assistant", "content": None, "tool_calls": [call]}
    return [ASK, request, {"role": "tool", "content": "06:00"}, ANSWER]


@pytest.fixture(scope="module")
def tool_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service whose rewards are numbers of tokens, with a template that renders tools."""
    file: Path = tmp_path_factory.mktemp("template") / "template.jinja"
    file.write_text(TEMPLATE)
    with serving(FakeBackend(), chat_template=str(file)) as client:
        until(lambda: ready(client))
        yield client


@pytest.fixture(scope="module")
def num_tokens() -> Callable[..., int]:
    """Number of tokens that transformers computes, with the demo model's tokenizer."""
    from transformers import AutoTokenizer

    from rm_core import seeds_dir

    tokenizer = AutoTokenizer.from_pretrained(seeds_dir() / "demo")

    def count(messages: Any, tools: Any = None) -> int:
        sent = [{**m, "content": m["content"] or ""} for m in messages]
        return len(
            tokenizer.apply_chat_template(
                sent, tools=tools, chat_template=TEMPLATE, return_dict=True
            )["input_ids"]
        )

    return count


def rewards(answer: Any) -> list[Any]:
    assert answer.status_code == 200, answer.text
    return [result.get("reward") for result in answer.json()["results"]]


def test_score_accepts_tools_per_body_and_per_conversation(
    tool_client: TestClient, num_tokens: Callable[..., int]
) -> None:
    conversations: list[Any] = [
        MESSAGES,
        {"messages": MESSAGES},
        {"messages": MESSAGES, "tools": OTHER},
        {"messages": MESSAGES, "tools": []},
        {"messages": MESSAGES, "tools": None},
    ]
    with_body = tool_client.post("/v1/score", json={"conversations": conversations, "tools": TOOLS})
    chosen = [TOOLS, TOOLS, OTHER, [], TOOLS]
    assert rewards(with_body) == [num_tokens(MESSAGES, tools) for tools in chosen]
    without = tool_client.post("/v1/score", json={"conversations": conversations})
    assert rewards(without) == [num_tokens(MESSAGES, t) for t in (None, None, OTHER, [], None)]
    as_text = {"conversations": [MESSAGES], "tools": json.dumps(TOOLS)}
    assert rewards(tool_client.post("/v1/score", json=as_text)) == [num_tokens(MESSAGES, TOOLS)]


def test_score_accepts_single_conversation_in_messages(
    tool_client: TestClient, num_tokens: Callable[..., int]
) -> None:
    answer = tool_client.post("/v1/score", json={"messages": MESSAGES, "tools": TOOLS})
    (result,) = answer.json()["results"]
    assert result["reward"] == result["score"] == num_tokens(MESSAGES, TOOLS)
    listed = tool_client.post("/v1/score", json={"conversations": [MESSAGES]}).json()["results"]
    assert "score" not in listed[0]
    (wrong,) = tool_client.post("/v1/score", json={"messages": [ASK]}).json()["results"]
    assert wrong["error"]["code"] == "invalid_conversation"
    assert "score" not in wrong
    for body in ({}, {"messages": MESSAGES, "conversations": [MESSAGES]}, {"messages": None}):
        refused = tool_client.post("/v1/score", json=body)
        assert refused.status_code == 400
        assert "give either `conversations`" in refused.json()["error"]["message"]
    rendered = tool_client.post("/v1/render", json={"messages": MESSAGES, "tools": TOOLS})
    assert '"name": "tide"' in rendered.json()["results"][0]["text"]


def test_tools_errors_name_the_field(tool_client: TestClient) -> None:
    whole = tool_client.post("/v1/score", json={"conversations": [MESSAGES], "tools": ["tide"]})
    error = whole.json()["error"]
    assert (whole.status_code, error["param"]) == (400, "tools")
    assert "tool 0 is text that cannot be read as JSON" in error["message"]
    conversations = [
        {"messages": MESSAGES, "tools": 5},
        {"messages": MESSAGES, "documents": [], "chat_template_kwargs": {}},
        MESSAGES,
        json.dumps(MESSAGES),
    ]
    answer = tool_client.post("/v1/score", json={"conversations": conversations})
    errors = [r.get("error", {}).get("message", "") for r in answer.json()["results"]]
    assert "`tools` is a number" in errors[0]
    assert "has the unknown keys `chat_template_kwargs`, `documents`" in errors[1]
    assert errors[2] == ""
    assert "looks like JSON" in errors[3]


def test_compare_and_rank_accept_tools(
    tool_client: TestClient, num_tokens: Callable[..., int]
) -> None:
    pairs: list[Any] = [
        {"prompt": "Tide?", "chosen": "At six.", "rejected": "No.", "tools": OTHER},
        {"prompt": "Tide?", "chosen": "At six.", "rejected": "No."},
        {"chosen": {"messages": MESSAGES, "tools": OTHER}, "rejected": MESSAGES},
        {"prompt": {"messages": [ASK], "tools": OTHER}, "chosen": "At six.", "rejected": "No."},
        {"prompt": "Tide?", "chosen": "At six.", "rejected": "No.", "tools": 5},
    ]
    answer = tool_client.post("/v1/compare", json={"pairs": pairs, "tools": TOOLS}).json()
    no = [ASK, {"role": "assistant", "content": "No."}]
    both = [(r.get("chosen_reward"), r.get("rejected_reward")) for r in answer["results"]]
    assert both == [
        (num_tokens(MESSAGES, OTHER), num_tokens(no, OTHER)),
        (num_tokens(MESSAGES, TOOLS), num_tokens(no, TOOLS)),
        (num_tokens(MESSAGES, OTHER), num_tokens(MESSAGES, TOOLS)),
        (num_tokens(MESSAGES, OTHER), num_tokens(no, OTHER)),
        (None, None),
    ]
    assert "`tools` is a number" in answer["results"][4]["error"]["message"]
    body: Any = {"prompt": "Tide?", "responses": ["At six.", "No."], "tools": TOOLS}
    right = [num_tokens(MESSAGES, TOOLS), num_tokens(no, TOOLS)]
    assert rewards(tool_client.post("/v1/rank", json=body)) == right
    own = {**body, "prompt": {"messages": [ASK], "tools": OTHER}}
    right = [num_tokens(MESSAGES, OTHER), num_tokens(no, OTHER)]
    assert rewards(tool_client.post("/v1/rank", json=own)) == right


CHAT_PATHS: dict[str, Callable[[Any], float]] = {
    "/classify": lambda a: a["data"][0]["probs"][0],
    "/pooling": lambda a: a["data"][0]["data"][0],
    "/tokenize": lambda a: a["count"],
    "/v1/chat/completions": lambda a: float(
        a["choices"][0]["message"]["content"].removeprefix("reward:")
    ),
}


@pytest.mark.parametrize("path", CHAT_PATHS)
def test_compat_chat_bodies_accept_tools_and_text_arguments(
    path: str, tool_client: TestClient, num_tokens: Callable[..., int]
) -> None:
    read = CHAT_PATHS[path]
    for arguments, parsed in (
        ('{"port": "Brest"}', {"port": "Brest"}),
        ({"port": "Brest"}, {"port": "Brest"}),
        ("", {}),
        (None, {}),
    ):
        body = {"messages": with_call(arguments), "tools": TOOLS}
        answer = tool_client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert read(answer.json()) == num_tokens(with_call(parsed), TOOLS)
        assert "x-skyreward-warnings" not in answer.headers
    empty = tool_client.post(path, json={"messages": [ASK, {**ANSWER, "tool_calls": []}]})
    assert read(empty.json()) == num_tokens(MESSAGES)
    for arguments in ("{", "[1]", "4", '{"a": 1, "a": 2}', '{"a": 1e999}'):
        refused = tool_client.post(path, json={"messages": with_call(arguments)})
        assert refused.status_code == 400
        assert "`arguments` of message 1 is" in refused.json()["error"]["message"]


@pytest.mark.parametrize("path", CHAT_PATHS)
@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("tools", 5, "`tools` is a number"),
        ("documents", [{"text": "x"}], "`documents` are not rendered"),
        ("chat_template", "x", "cannot choose the chat template"),
        ("chat_template_kwargs", {"a": 1}, "cannot choose the chat template"),
    ],
)
def test_unsupported_chat_fields_are_rejected(
    path: str, field: str, value: Any, expected: str, tool_client: TestClient
) -> None:
    answer = tool_client.post(path, json={"messages": MESSAGES, field: value})
    assert answer.status_code == 400
    assert expected in answer.json()["error"]["message"]
    null = tool_client.post(path, json={"messages": MESSAGES, field: None})
    assert null.status_code == 200, null.text


def test_openai_functions_field_is_rejected(tool_client: TestClient) -> None:
    body = {"messages": MESSAGES, "functions": [{"name": "tide"}]}
    answer = tool_client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "send `tools`" in answer.json()["error"]["message"]


def test_native_arguments_are_rendered_as_sent(
    tool_client: TestClient, num_tokens: Callable[..., int]
) -> None:
    sent = [with_call('{"port": "Brest"}'), with_call({"port": None})]
    answer = tool_client.post("/v1/score", json={"conversations": sent})
    assert rewards(answer) == [num_tokens(one) for one in sent]
    first, second = answer.json()["results"]
    assert first["warnings"][0].startswith("arguments_as_text: ")
    assert "warnings" not in second


def test_check_num_messages_counts_messages_with_tools() -> None:
    from serve.scoring.tokenization import check_num_messages

    error = check_num_messages({"messages": [ASK] * 6, "tools": TOOLS}, 5)
    assert error is not None
    assert "6 messages and the limit is 5" in error.message
    assert check_num_messages({"messages": [ASK] * 5, "tools": TOOLS}, 5) is None


def test_tei_rerank_returns_list_best_first(client: TestClient) -> None:
    from compat_bodies import LONGER_REWARD, REWARD

    body: dict[str, Any] = {"query": "2+2?", "texts": ["4 4 4 4", "4", "4"]}
    answer = client.post("/rerank", json=body)
    # As in TEI, of equal scores the later one comes first.
    assert answer.json() == [
        {"index": 2, "score": REWARD},
        {"index": 1, "score": REWARD},
        {"index": 0, "score": LONGER_REWARD},
    ]
    assert answer.headers["x-skyreward-raw-scores"] == "true (default)"
    assert answer.headers["x-skyreward-input"] == "conversation:query-as-user,text-as-assistant"
    texts = client.post("/rerank", json={**body, "return_text": True, "raw_scores": False})
    assert [rank["text"] for rank in texts.json()] == ["4", "4", "4 4 4 4"]
    assert texts.json()[0]["score"] == pytest.approx(0.7772998611746911)
    assert texts.headers["x-skyreward-raw-scores"] == "false (as asked)"
    # With `documents`, the body is vLLM's, whatever other fields it has.
    assert "results" in client.post("/rerank", json={**body, "documents": ["4"]}).json()


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"query": "a", "texts": []}, 400, "Empty"),
        ({"query": "a", "texts": 5}, 422, "Validation"),
        ({"query": 5, "texts": ["b"]}, 422, "Validation"),
        ({"texts": ["b"]}, 422, "Validation"),
        ({"query": "a", "texts": [["b"]]}, 422, "Validation"),
        ({"query": "a", "texts": ["b"], "raw_scores": "x"}, 422, "Validation"),
        ({"query": "a", "texts": ["b \ud800"]}, 422, "Validation"),
    ],
)
def test_tei_rerank_errors_have_tei_format(
    client: TestClient, body: Any, status: int, kind: str
) -> None:
    answer = client.post(
        "/rerank", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "error_type"}
    assert answer.json()["error_type"] == kind


def test_tei_rerank_truncates_only_on_request() -> None:
    with serving(FakeBackend(), max_length=20) as client:
        until(lambda: ready(client))
        body = {"query": "word " * 50, "texts": ["4"]}
        assert client.post("/rerank", json=body).status_code == 422
        for direction in ("right", "Left"):
            cut = client.post(
                "/rerank", json={**body, "truncate": True, "truncation_direction": direction}
            )
            assert cut.json()[0]["score"] <= 20
            assert cut.headers["x-skyreward-truncated"] == "1"
