"""A scorer replica that is killed during a batch: no request fails."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx
import pytest
from checkpoints import PathOf
from processes import kill, replicas_of, service_on

from rm_core import ModelConfig, Reward, RewardScorer

NUM_REQUESTS = 24


def create_conversations(number: int) -> list[list[dict[str, Any]]]:
    """Create conversations that no other request has, so that none is cached."""
    texts = [f"{number} and {i}: " + "the capital of France " * 20 for i in range(1 + number % 12)]
    return [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "Paris."}]
        for text in texts
    ]


def test_every_request_is_answered_after_scorer_is_killed(
    service: str, http: httpx.Client, checkpoint_of: PathOf
) -> None:
    port = httpx.URL(service).port
    assert port is not None
    pid = service_on(port, os.getpid())
    (before,) = replicas_of(pid, "Scorer-llama")
    requests = [create_conversations(number) for number in range(NUM_REQUESTS)]
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        futures = [
            pool.submit(
                http.post, "/v1/score", json={"model": "llama", "conversations": conversations}
            )
            for conversations in requests
        ]
        next(as_completed(futures))
        in_flight = [future for future in futures if not future.done()]
        assert kill(before)
        answers = [future.result() for future in futures]
    assert in_flight
    assert {answer.status_code for answer in answers} == {200}, answers
    scorer = RewardScorer.load(ModelConfig(str(checkpoint_of("llama-v0.1"))))
    for conversations, answer in zip(requests, answers, strict=True):
        rewards = [result.get("reward") for result in answer.json()["results"]]
        expected = [
            reward.reward for reward in scorer.score(conversations) if isinstance(reward, Reward)
        ]
        assert rewards == pytest.approx(expected, abs=1e-4)
    # Answered only once there is another replica.
    more = http.post(
        "/v1/score", json={"model": "llama", "conversations": create_conversations(NUM_REQUESTS)}
    )
    assert more.status_code == 200, more.text
    (after,) = replicas_of(pid, "Scorer-llama")
    assert after.pid != before.pid
