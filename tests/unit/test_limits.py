"""Numbers of conversations and messages in one request."""

from __future__ import annotations

import pytest
from fakes import FakeBackend, conversation, ready
from fastapi.testclient import TestClient
from waiting import until

from rm_core import InvalidConversationError
from serve.api.app import create_app
from serve.config.settings import Settings
from serve.errors import BadRequestError
from serve.scoring.service import ScoringService
from serve.scoring.tokenization import check_num_conversations, check_num_messages


def test_too_many_conversations_are_rejected() -> None:
    check_num_conversations(20_000, 20_000)
    with pytest.raises(
        BadRequestError, match=r"20,001 conversations and the limit is 20,000; spli"
    ):
        check_num_conversations(20_001, 20_000)


def test_check_num_messages_counts_only_conversations() -> None:
    for odd in (None, 7, "x" * 100, {"role": "user"}, [], [{}] * 5, (1,) * 5):
        assert check_num_messages(odd, 5) is None
    error = check_num_messages([None] * 6, 5)
    assert error is not None
    assert error.code == InvalidConversationError.code
    assert "6 messages and the limit is 5" in error.message


def test_compare_and_rank_check_limits_of_conversations_and_messages() -> None:
    settings = Settings.load(max_conversations=4, max_messages=3)
    app = create_app(ScoringService([(settings.models[0], FakeBackend())], settings), settings)
    with TestClient(app) as client:
        until(lambda: ready(client))
        pair = {"chosen": conversation("4"), "rejected": conversation("5")}
        for number, status in ((2, 200), (3, 400)):
            answer = client.post("/v1/compare", json={"pairs": [pair] * number})
            assert answer.status_code == status
        assert "6 conversations (two a pair)" in answer.json()["error"]["message"]
        for number, status in ((4, 200), (5, 400)):
            body = {"prompt": "2+2?", "responses": ["4"] * number}
            answer = client.post("/v1/rank", json=body)
            assert answer.status_code == status
        assert "split it" in answer.json()["error"]["message"]
        crowded = {"prompt": [{"role": "user", "content": "x"}] * 4, "responses": ["4", "5"]}
        results = client.post("/v1/rank", json=crowded).json()["results"]
        assert [r["error"]["code"] for r in results] == ["invalid_conversation"] * 2
        assert "4 messages and the limit is 3" in results[0]["error"]["message"]


def test_prompt_error_is_repeated_for_each_response() -> None:
    settings = Settings.load()
    app = create_app(ScoringService([(settings.models[0], FakeBackend())], settings), settings)
    with TestClient(app) as client:
        until(lambda: ready(client))
        for prompt, expected in (([], "empty"), (None, "without a `prompt`"), (7, "number")):
            body = {"prompt": prompt, "responses": ["4", "5"]}
            results = client.post("/v1/rank", json=body).json()["results"]
            assert all(expected in result["error"]["message"] for result in results)
