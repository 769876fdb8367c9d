"""A model that is replaced while a request is on its way: no reward ends up with the wrong one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from fakes import INFO, FakeBackend, conversation

from rm_core import NotReadyError
from serve.model_settings import ModelSettings
from serve.served_model import Scores, ServedModel

OTHER = {**INFO, "revision": "other"}
CONVERSATIONS = [conversation("4"), conversation("five")]


def served(backend: FakeBackend, info: dict[str, Any] = INFO) -> ServedModel:
    model = ServedModel(ModelSettings(name="demo", alias="demo"), backend)
    model.info = info
    return model


def score(model: ServedModel) -> Scores:
    return asyncio.run(model.score(CONVERSATIONS, "error"))


@pytest.mark.parametrize("now", [OTHER, None])
def test_replaced_while_it_scores_nothing_is_remembered(now: dict[str, Any] | None) -> None:
    backend = FakeBackend()
    model = served(backend)

    def reward(ids: Sequence[int]) -> float:
        model.info = now
        return 1.0

    backend.reward = reward
    assert score(model).fingerprint.revision == INFO["revision"]
    model.info = INFO
    backend.reward = lambda _: 2.0
    assert [result.reward for result in score(model).results] == [2.0, 2.0]
    assert score(model).num_cached_tokens == score(model).num_tokens


def test_replaced_while_it_tokenizes_the_caller_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = FakeBackend()
    model = served(backend)
    encode_all = model.encoder.encode_all

    def replacing(*args: Any) -> Any:
        model.info = OTHER
        return encode_all(*args)

    monkeypatch.setattr(model.encoder, "encode_all", replacing)
    with pytest.raises(NotReadyError, match="just replaced; try again"):
        score(model)
    assert backend.batches == []
    assert score(model).fingerprint.revision == "other"


def test_what_another_model_computed_is_not_answered() -> None:
    backend = FakeBackend()
    model = served(backend)
    score(model)
    model.info = OTHER
    backend.reward = lambda _: 0.25
    assert [result.reward for result in score(model).results] == [0.25, 0.25]
    model.info = INFO  # and back again: what it computed is still true
    assert [result.reward for result in score(model).results] != [0.25, 0.25]
    assert len(backend.batches) == 2
