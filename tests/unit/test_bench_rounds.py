"""Benchmarks: every way gets rows that nobody had, and is compared on equal ones."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from rm_core import ChatEncoder, ModelConfig, load_encoder

sys.path.append(str(ROOT / "tests" / "bench"))

import rounds
from machine import Need
from ways import Scored
from workloads import (
    Conversations,
    arriving,
    draw_salt,
    groups_of_16,
    judgebench_pairs,
    talk,
    with_salt,
)


@pytest.fixture(scope="module")
def demo_encoder() -> ChatEncoder:
    return load_encoder(ModelConfig("demo"))


def test_salts_are_new_and_equally_long(demo_encoder: ChatEncoder) -> None:
    conversations = [talk("What is 2+2?", "4"), talk("What is 2+2?", "5")]
    salts = {draw_salt() for _ in range(20)}
    assert len(salts) == 20
    lengths = {demo_encoder.encode(with_salt(conversations, salt)[0]).num_tokens for salt in salts}
    assert len(lengths) == 1
    salted = with_salt(conversations, salt := salts.pop())
    assert [c[0]["content"] for c in salted] == [f"{salt}What is 2+2?"] * 2
    assert [c[1] for c in salted] == [c[1] for c in conversations]
    assert conversations[0][0]["content"] == "What is 2+2?"
    parts = [[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]]
    assert with_salt(parts, "1 ")[0][0]["content"][0] == {"type": "text", "text": "1 "}


def test_each_way_and_round_gets_rows_that_nobody_had() -> None:
    received: dict[str, list[Conversations]] = {"one": [], "other": []}

    def way_of(name: str, offset: float, num_computed: int | None) -> Callable[..., Scored]:
        def way(conversations: Conversations) -> Scored:
            received[name].append(conversations)
            return Scored([offset] * len(conversations), num_computed)

        return way

    measured = rounds.measure(
        {"one": way_of("one", 0.0, 80), "other": way_of("other", 0.25, None)},
        [talk(f"question {number}", "answer") for number in range(12)],
        Need(12, 120, 100, 10, 1.0),
        lambda name: 3 if name == "one" else 2,
        lambda: 1.0,
    )
    assert measured.reference == "one"
    assert measured.differences == {"one": 0.0, "other": 0.25}
    warm_ups = {len(conversations) for conversations in received["other"][:2]}
    assert warm_ups == {8}
    assert received["other"][0] == received["other"][1] == received["one"][0]
    # One pass more of the reference, then two of each way.
    timed = received["one"][3:] + received["other"][2:]
    assert [len(conversations) for conversations in timed] == [12] * 5
    prompts = [conversations[0][0]["content"] for conversations in [*timed, received["one"][0]]]
    assert len(set(prompts)) == 6
    assert measured.computed_tokens("one") == 80
    assert measured.computed_tokens("other") is None
    assert measured.record([])["ways"]["one"]["computed_tokens"] == 80


def test_missing_reward_ends_the_benchmark() -> None:
    calls = itertools.count()

    def way(conversations: Conversations) -> Scored:
        return Scored([0.0] * (len(conversations) - (next(calls) > 2)))

    with pytest.raises(SystemExit, match="1 rewards of 2"):
        rounds.measure(
            {"way": way},
            [talk("a", "b"), talk("a", "c")],
            Need(2, 2, 2, 1, 1.0),
            lambda _: 1,
            lambda: 1.0,
        )


def test_answers_arrive_in_any_order_to_prompts_of_no_other_workload(tmp_path: Path) -> None:
    chance = random.Random(0)
    words = [str(number) for number in range(500)]
    (tmp_path / "judgebench").mkdir()
    rows = [
        {
            "question": f"question {number}?",
            **{f"response_{side}": " ".join(chance.choices(words, k=60)) for side in "AB"},
        }
        for number in range(60)
    ]
    file = tmp_path / "judgebench" / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    conversations = arriving(tmp_path)
    prompts = [conversation[0]["content"] for conversation in conversations]
    assert len(conversations) == 192
    assert sorted(prompts.count(prompt) for prompt in set(prompts)) == [16] * 12
    others = judgebench_pairs(tmp_path) + groups_of_16(tmp_path)
    questions = {conversation[0]["content"].partition("?")[0] for conversation in others}
    assert questions.isdisjoint(prompt.partition("?")[0] for prompt in prompts)
    assert len(set(prompts[:16])) > 6
