"""What both clients do with many conversations: split, post, put in order, name failures."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from stub_service import StubService, conversation

from rm_core import Reward, ScoreError
from serve.client import ScoringFailedError, ServiceError
from serve.client.retries import backoff_seconds

DEAD = "http://127.0.0.1:9"


def numbers(stub: StubService) -> list[list[float]]:
    return [[float(c[-1]["content"]) for c in b["conversations"]] for b in stub.bodies]


def test_many_are_posted_in_parts_and_come_back_in_order(
    stub: StubService, client_of: Callable[..., Any]
) -> None:
    wanted = [float(n) for n in range(1000)]
    assert client_of(stub.url).score([conversation(n) for n in wanted]) == wanted
    assert sorted(len(part) for part in numbers(stub)) == [232, 256, 256, 256]
    assert sorted(n for part in numbers(stub) for n in part) == wanted


def test_parts_are_bounded_in_bytes(stub: StubService, client_of: Callable[..., Any]) -> None:
    client = client_of(stub.url, max_bytes=10_000)
    lengths = [10, 4000, 4000, 4000, 30_000, 10, 10]
    sent = [conversation(n, "x" * length) for n, length in enumerate(lengths)]
    assert client.score(sent) == list(range(7))
    parts = sorted(numbers(stub))
    assert parts == [[0, 1, 2], [3], [4], [5, 6]]


def test_what_the_service_finds_too_large_goes_in_halves(
    stub: StubService, client_of: Callable[..., Any]
) -> None:
    stub.max_bytes = 2_000
    sent = [conversation(n, "x" * (5_000 if n == 3 else 300)) for n in range(20)]
    results = client_of(stub.url).results(sent)
    assert results[3].code == "body_too_large"
    assert [r.reward for n, r in enumerate(results) if n != 3] == [n for n in range(20) if n != 3]


def test_posts_are_sent_at_the_same_time_but_not_too_many(
    stub: StubService, client_of: Callable[..., Any]
) -> None:
    stub.num_together = 3
    stub.delay_s = 0.05  # for a fourth to come
    client = client_of(stub.url, max_items=1, num_posts=3)
    assert client.score([conversation(n) for n in range(12)]) == list(range(12))
    assert stub.most_at_a_time == 3


def test_failures_are_named_and_cost_nobody_else_anything(
    stub: StubService, client_of: Callable[..., Any]
) -> None:
    sent: list[Any] = [conversation(n) for n in range(600)]
    sent[7] = [conversation(7)[0], {"role": "assistant", "content": "seven"}]
    sent[300] = [{"role": "user", "content": math.nan}]
    sent[301] = [{"role": "user", "content": object()}]
    client = client_of(stub.url)
    with pytest.raises(ScoringFailedError) as caught:
        client.score(sent)
    error = caught.value
    assert error.detail == (
        "3 of 600 conversations got no reward: conversation 7: invalid_conversation: that is no "
        "number; conversation 300: invalid_conversation: a message has NaN or an infinite number, "
        "which JSON cannot carry; leave it out; conversation 301: invalid_conversation: a message "
        "has a object, which JSON cannot carry; send text and plain values"
    )
    assert sorted(error.failures) == [7, 300, 301]
    assert [r.reward for r in error.results if isinstance(r, Reward)] == [
        n for n in range(600) if n not in error.failures
    ]
    again = pickle.loads(pickle.dumps(error))
    assert (again.detail, again.results) == (error.detail, error.results)
    assert client.results(sent) == error.results


def test_many_failures_are_told_in_short() -> None:
    error = ScoringFailedError.from_results([ScoreError("c", "m")] * 100)
    assert error.detail.startswith("100 of 100 conversations got no reward: conversation 0: c: m; ")
    assert "and 95 more (5, 6, 7," in error.detail
    assert len(error.detail) < 500
    assert len(error.failures) == 100


def test_a_request_that_fails_is_named_and_ends_the_call(
    stub: StubService, client_of: Callable[..., Any]
) -> None:
    # The others would wait for an hour, far longer than a test may take.
    stub.refusals = [(503, {"Retry-After": "3000"})] * 3 + [(400, {})]
    client = client_of(stub.url, retry_s=4000, num_posts=4)
    with pytest.raises(ServiceError, match=r"conversations \d+ to \d+ of 1024: .* 400: not now"):
        client.score([conversation(n) for n in range(1024)])


def test_an_address_that_is_dead_costs_little(
    stub: StubService, client_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It rests for longer than a test may take, so the posts that are sent at first are all.
    monkeypatch.setattr("serve.client.retries._INITIAL_BACKOFF_S", 3_600.0)
    monkeypatch.setattr("serve.client.retries._MAX_BACKOFF_S", 3_600.0)
    client = client_of([DEAD, stub.url], max_items=5, num_posts=4)
    assert client.score([conversation(n) for n in range(200)]) == list(range(200))
    assert 1 <= client.num_retries <= 4


def test_several_addresses_share_the_work(
    stub: StubService, other: StubService, client_of: Callable[..., Any]
) -> None:
    client = client_of([stub.url, other.url])
    assert client.score([conversation(n) for n in range(20)]) == list(range(20))
    for number in range(10):
        client.score([conversation(number)])
    assert [len(part) for part in (numbers(stub)[0], numbers(other)[0])] == [10, 10]
    assert len(stub.bodies) == len(other.bodies) == 6


def test_one_address_refuses_and_the_other_takes_over_at_once(
    stub: StubService, other: StubService, client_of: Callable[..., Any]
) -> None:
    stub.refusals = [(503, {"Retry-After": "3000"})]  # longer than a test may take
    client = client_of([stub.url, other.url], retry_s=0)
    for number in range(10):
        assert client.score([conversation(number)]) == [number]
    assert (len(stub.bodies), len(other.bodies)) == (0, 10)


def test_nobody_is_there(client_of: Callable[..., Any]) -> None:
    client = client_of([DEAD, "http://127.0.0.1:10"], retry_s=0)
    with pytest.raises(ServiceError, match=r"did not answer: .* \(2 tries"):
        client.score([conversation(1)])


def test_rewards_of_two_models_are_not_mixed(
    stub: StubService, other: StubService, client_of: Callable[..., Any]
) -> None:
    other.fingerprint = {"revision": "another"}
    client = client_of([stub.url, other.url])
    with pytest.raises(ServiceError, match="rewards of two models cannot be compared"):
        client.score([conversation(n) for n in range(20)])
    # Not in one call after another either.
    client = client_of([stub.url, other.url])
    client.score([conversation(1)])
    with pytest.raises(ServiceError, match="two models"):
        client.score([conversation(1)])


@pytest.mark.parametrize("nonsense", [None, True, "1", math.nan])
def test_what_is_no_number_is_no_reward(
    stub: StubService, client_of: Callable[..., Any], nonsense: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"reward": nonsense, "num_tokens": 1, "truncated": False}
    monkeypatch.setattr(StubService, "_single", lambda self, item: answer)
    with pytest.raises(ServiceError, match="answered nonsense"):
        client_of(stub.url).score([conversation(1)])


def test_arrays_of_numpy_are_sent_as_lists(
    stub: StubService, client_of: Callable[..., Any]
) -> None:
    array = np.array(conversation(3), dtype=object)
    with_number = [{"role": "user", "content": "?", "weight": np.float32(0.5)}, conversation(4)[1]]
    assert client_of(stub.url).score([array, with_number]) == [3, 4]
    assert stub.bodies[0]["conversations"][1][0]["weight"] == 0.5


def test_pairs_and_groups(stub: StubService, client_of: Callable[..., Any]) -> None:
    client = client_of(stub.url, "rm", max_items=4)
    pairs = [{"prompt": "?", "chosen": str(n), "rejected": "1"} for n in range(10)]
    assert [pair.margin for pair in client.compare(pairs)] == [n - 1 for n in range(10)]
    ranking = client.rank("2+2?", ["3", "9", "1", "9", "4"])
    assert ranking.rewards == [3, 9, 1, 9, 4]
    assert (ranking.ranks, ranking.best_index) == ([4, 1, 5, 1, 3], 1)
    assert {b["model"] for b in stub.bodies} == {"rm"}
    assert {b["prompt"] for b in stub.bodies if "responses" in b} == {"2+2?"}
    pairs[4]["rejected"] = "no number"
    with pytest.raises(ScoringFailedError, match="1 of 10 pairs got no reward: pair 4: invalid"):
        client.compare(pairs)
    with pytest.raises(ScoringFailedError, match="response 1: invalid"):
        client.rank("?", ["1", "x"])


def test_nothing_is_nothing(stub: StubService, client_of: Callable[..., Any]) -> None:
    client = client_of(stub.url)
    assert client.score([]) == []
    assert client.compare([]) == []
    assert not stub.bodies


def test_progress_is_shown_on_request_alone(
    stub: StubService, client_of: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    client = client_of(stub.url, max_items=2)
    client.score([conversation(n) for n in range(5)])
    assert capfd.readouterr() == ("", "")
    client.score([conversation(n) for n in range(5)], progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "5/5" in shown.err


def test_tools_for_all_go_into_the_body(client_of: Callable[..., Any], stub: StubService) -> None:
    tools = [{"name": "tide", "default": None}]
    client = client_of(stub.url)
    client.score([conversation(1)], tools=tools)
    client.results([conversation(1)], tools="[]")
    client.compare([{"chosen": conversation(1), "rejected": conversation(2)}], tools=tools)
    client.rank(None, [conversation(1)], tools=tools)
    client.score([{"messages": conversation(1), "tools": tools}])
    sent = [body.get("tools", "none") for body in stub.bodies]
    assert sent == [[{"name": "tide"}], "[]", [{"name": "tide"}], [{"name": "tide"}], "none"]
    assert stub.bodies[3]["prompt"] is None
    assert stub.bodies[4]["conversations"][0]["tools"] == [{"name": "tide"}]


def test_waits_leave_the_global_generator_alone() -> None:
    """A trainer's own draws depend on its seed alone, whatever its reward service does."""
    state = random.getstate()
    waits = {backoff_seconds(httpx.ConnectError("refused"), 3) for _ in range(10)}
    assert len(waits) > 1
    assert random.getstate() == state
