"""A scorer that dies with work in its hands: whoever waits for that work must not notice."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import kill, replicas_of, service_on

from rm_core import ModelConfig, Reward, RewardScorer

NUM_POSTS = 24


def post_of(number: int) -> list[list[dict[str, Any]]]:
    """Conversations that nobody else posts, so that no cache knows them."""
    texts = [f"{number} and {i}: " + "the capital of France " * 20 for i in range(1 + number % 12)]
    return [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "Paris."}]
        for text in texts
    ]


def test_every_request_is_answered_after_scorer_is_killed(
    service: str, http: httpx.Client, checkpoint_folder: Path
) -> None:
    port = httpx.URL(service).port
    assert port is not None
    pid = service_on(port, os.getpid())
    (before,) = replicas_of(pid, "Scorer-llama")
    posts = [post_of(number) for number in range(NUM_POSTS)]
    with ThreadPoolExecutor(NUM_POSTS) as pool:
        waiting = [
            pool.submit(http.post, "/v1/score", json={"model": "llama", "conversations": post})
            for post in posts
        ]
        next(as_completed(waiting))
        in_flight = [future for future in waiting if not future.done()]
        assert kill(before)
        answers = [future.result() for future in waiting]
    assert in_flight
    assert {answer.status_code for answer in answers} == {200}, answers
    scorer = RewardScorer.load(ModelConfig(str(checkpoint_folder / "llama-v0.1")))
    for post, answer in zip(posts, answers, strict=True):
        rewards = [result.get("reward") for result in answer.json()["results"]]
        expected = [reward.reward for reward in scorer.score(post) if isinstance(reward, Reward)]
        assert rewards == pytest.approx(expected, abs=1e-4)
    # Not answered before there is another scorer.
    more = http.post("/v1/score", json={"model": "llama", "conversations": post_of(NUM_POSTS)})
    assert more.status_code == 200, more.text
    (after,) = replicas_of(pid, "Scorer-llama")
    assert after.pid != before.pid
