"""Both clients with several models: typed results, fingerprints of each, and failures alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from stub_service import StubService

from rm_core import Reward, ScoreError
from serve.client import ModelRewards, ServiceError

CHATS: list[Any] = [
    [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": text}]
    for text in ("4", "It is 4.\nSure.", "22")
]


def test_score_with_models(service: StubService, make_client: Callable[..., Any]) -> None:
    client = make_client(service.url, "rm", max_items=2)
    weights = {"rm": 0.5, "prm": 2.0}
    results = client.score(CHATS, models=["rm", "prm"], combine=weights, aggregation="min")
    assert {tuple(body["models"]) for body in service.bodies} == {("rm", "prm")}
    assert all("model" not in body for body in service.bodies)
    rewards = client.score(CHATS)
    steps = make_client(service.url, "prm").results(CHATS, aggregation="min")
    for result, reward, step in zip(results, rewards, steps, strict=True):
        assert isinstance(result, ModelRewards)
        assert (result.rewards, result.errors) == ({"rm": reward, "prm": step.reward}, {})
        assert result.results["prm"] == step
        assert result.reward == pytest.approx(0.5 * reward + 2 * step.reward)
        assert not result.calibrated_rewards
        assert not result.turn_rewards
    assert client.model_fingerprints.keys() == {"rm", "prm"}
    clipped = client.score_models(CHATS, ["rm"], combine={"rm": 1}, clip=(0, 0))
    assert [result.reward for result in clipped] == [0.0] * 3


@pytest.mark.parametrize("option", [{"combine": {"rm": 1}}, {"clip": (0, 1)}, {"truncate": "left"}])
def test_options_without_models_are_refused(
    service: StubService, make_client: Callable[..., Any], option: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match=f"no option '{next(iter(option))}' without `models`"):
        make_client(service.url, "rm").score(CHATS, **option)
    assert not service.bodies


def test_text_is_not_a_list_of_models(
    service: StubService, make_client: Callable[..., Any]
) -> None:
    with pytest.raises(TypeError, match="`models` is 'rm'; give a list of names"):
        make_client(service.url).score(CHATS, models="rm")


def test_conversations_fail_alone(service: StubService, make_client: Callable[..., Any]) -> None:
    client = make_client(service.url)
    lost = ScoreError("invalid_conversation", "no prompt")
    chats = [CHATS[0], CHATS[0][:1], lost]
    good, bad, unsent = client.score_models(chats, ["rm", "prm"], combine={"rm": 1})
    assert isinstance(good.results["rm"], Reward)
    assert {e.code for e in bad.errors.values()} == {"invalid_conversation"}
    assert bad.reward is None
    assert unsent.errors == {"rm": lost, "prm": lost}
    with pytest.raises(ServiceError, match="models not served here: 'other'"):
        client.score(CHATS, models=["rm", "other"])


def test_turns_of_models(service: StubService, make_client: Callable[..., Any]) -> None:
    client = make_client(service.url, "rm")
    dialog = [*CHATS[0], *CHATS[1]]
    (result,) = client.score([dialog], models=["rm"], turns="all")
    (alone,) = client.score_turns([dialog])
    assert result.turn_rewards == {"rm": alone.turn_rewards}


def test_fingerprint_of_each_model_is_checked(
    app: TestClient, service: StubService, make_client: Callable[..., Any]
) -> None:
    client = make_client(service.url)
    client.model_fingerprints["prm"] = {"revision": "another"}
    client.score(CHATS, models=["rm"])
    with pytest.raises(ServiceError, match="rewards of two models cannot be compared"):
        client.score(CHATS, models=["rm", "prm"])
