"""Queries and documents: scored as a user's turn and an assistant's turn."""

from __future__ import annotations

from typing import Any

import pytest
from compat_bodies import LONGER_REWARD, MESSAGES, REWARD
from fastapi.testclient import TestClient


def usage(num_tokens: int, *more: str) -> dict[str, Any]:
    return {
        "prompt_tokens": num_tokens, "total_tokens": num_tokens, "completion_tokens": 0,
        "prompt_tokens_details": None, **dict.fromkeys(more),
    }  # fmt: skip


PAIRS = [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_vllm_score(client: TestClient, path: str, first: str, second: str) -> None:
    parts = {"content": [{"type": "text", "text": "4"}]}
    for queries, documents, rewards in (
        ("2+2?", "4", [REWARD]),
        ("2+2?", ["4", "4 4 4 4", parts], [REWARD, LONGER_REWARD, REWARD]),
        (["2+2?", {"content": "2+2?"}], ["4", "4 4 4 4"], [REWARD, LONGER_REWARD]),
    ):
        answer = client.post(path, json={first: queries, second: documents})
        body = answer.json()
        assert body["data"] == [
            {"index": i, "object": "score", "score": reward} for i, reward in enumerate(rewards)
        ]
        input_format = "conversation:query-as-user,document-as-assistant"
        assert answer.headers["x-skyreward-input"] == input_format


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_vllm_rerank_sorts_best_first(client: TestClient, path: str) -> None:
    body = {"query": "2+2?", "documents": ["4 4 4 4", "4", {"text": "4"}]}
    answer = client.post(path, json=body).json()
    assert [r["index"] for r in answer["results"]] == [1, 2, 0]
    assert answer["results"][0] == {
        "index": 1, "document": {"text": "4", "multi_modal": None}, "relevance_score": REWARD,
    }  # fmt: skip
    assert len(client.post(path, json=body | {"top_n": 2}).json()["results"]) == 2


def test_v1_score_accepts_native_body(client: TestClient) -> None:
    answer = client.post("/v1/score", json={"conversations": [MESSAGES]}).json()
    assert answer["results"][0]["reward"] == REWARD
    wrong = client.post("/v1/score", json={"conversations": [], "text": "x"}).json()["error"]
    assert (wrong["code"], wrong["param"]) == ("bad_request", "text")
    both = client.post("/v1/score", json={"conversations": [], "text_1": "x"}).json()["error"]
    assert both["param"] == "text_1"
