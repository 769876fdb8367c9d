"""Calls of both clients: sharding, concurrency, order of results, named failures."""

from __future__ import annotations

import itertools
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
from serve.client.endpoints import backoff_seconds

DEAD = "http://127.0.0.1:9"


def get_sent_numbers(stub: StubService) -> list[list[float]]:
    return [[float(c[-1]["content"]) for c in b["conversations"]] for b in stub.bodies]


def test_large_call_is_split_and_results_keep_order(
    stub: StubService, make_client: Callable[..., Any]
) -> None:
    expected = [float(n) for n in range(1000)]
    assert make_client(stub.url).score([conversation(n) for n in expected]) == expected
    assert sorted(len(shard) for shard in get_sent_numbers(stub)) == [232, 256, 256, 256]
    assert sorted(n for shard in get_sent_numbers(stub) for n in shard) == expected


def test_shards_are_limited_in_bytes(stub: StubService, make_client: Callable[..., Any]) -> None:
    client = make_client(stub.url, max_bytes=10_000)
    lengths = [10, 4000, 4000, 4000, 30_000, 10, 10]
    sent = [conversation(n, "x" * length) for n, length in enumerate(lengths)]
    assert client.score(sent) == list(range(7))
    assert sorted(get_sent_numbers(stub)) == [[0, 1, 2], [3], [4], [5, 6]]


def test_prompts_are_grouped_on_request(stub: StubService, make_client: Callable[..., Any]) -> None:
    sent = [conversation(n, f"question {n % 7}") for n in range(100)]
    expected = [float(n) for n in range(100)]
    for groups_prompts, num_changes in ((False, 99), (True, 6)):
        stub.bodies.clear()
        client = make_client(
            stub.url, max_items=9, max_concurrency=1, groups_prompts=groups_prompts
        )
        assert client.score(sent) == expected
        prompts = [c[0]["content"] for body in stub.bodies for c in body["conversations"]]
        assert sum(a != b for a, b in itertools.pairwise(prompts)) == num_changes
        assert sorted(n for shard in get_sent_numbers(stub) for n in shard) == expected
    stub.refusals = [(400, {})]
    with pytest.raises(ServiceError, match=r"9 of the conversations 0 to 63: .* 400: not now"):
        client.score(sent)


def test_usage_and_token_counts(stub: StubService, make_client: Callable[..., Any]) -> None:
    client = make_client(stub.url, max_items=2)
    response = client.score_with_usage([conversation(n) for n in range(5)])
    assert [result.reward for result in response.results] == list(range(5))
    assert response.num_computed_tokens == 10
    assert response.num_cached_tokens == 5
    counts = client.count_tokens([conversation(1), [{"role": "user", "content": math.nan}]])
    assert counts[0] == 1
    assert counts[1].code == "invalid_conversation"


def test_request_rejected_with_413_is_split_in_halves(
    stub: StubService, make_client: Callable[..., Any]
) -> None:
    stub.max_bytes = 2_000
    sent = [conversation(n, "x" * (5_000 if n == 3 else 300)) for n in range(20)]
    results = make_client(stub.url).results(sent)
    assert results[3].code == "body_too_large"
    assert [r.reward for n, r in enumerate(results) if n != 3] == [n for n in range(20) if n != 3]


def test_max_concurrency_limits_concurrent_requests(
    stub: StubService, make_client: Callable[..., Any]
) -> None:
    stub.num_together = 3
    stub.delay_s = 0.05  # time for a fourth request to arrive
    client = make_client(stub.url, max_items=1, max_concurrency=3)
    assert client.score([conversation(n) for n in range(12)]) == list(range(12))
    assert stub.most_at_a_time == 3


def test_scoring_failed_error_names_items_and_keeps_other_rewards(
    stub: StubService, make_client: Callable[..., Any]
) -> None:
    sent: list[Any] = [conversation(n) for n in range(600)]
    sent[7] = [conversation(7)[0], {"role": "assistant", "content": "seven"}]
    sent[300] = [{"role": "user", "content": math.nan}]
    sent[301] = [{"role": "user", "content": object()}]
    client = make_client(stub.url)
    with pytest.raises(ScoringFailedError) as caught:
        client.score(sent)
    error = caught.value
    assert error.detail == (
        "3 of 600 conversations got no reward: conversation 7: invalid_conversation: that is no "
        "number; conversation 300: invalid_conversation: a message has NaN or an infinite number, "
        "which JSON cannot represent; leave it out; conversation 301: invalid_conversation: a "
        "message has a object, which JSON cannot represent; send text and plain values"
    )
    assert sorted(error.failures) == [7, 300, 301]
    assert [r.reward for r in error.results if isinstance(r, Reward)] == [
        n for n in range(600) if n not in error.failures
    ]
    unpickled = pickle.loads(pickle.dumps(error))
    assert (unpickled.detail, unpickled.results) == (error.detail, error.results)
    assert client.results(sent) == error.results


def test_scoring_failed_error_abbreviates_many_failures() -> None:
    error = ScoringFailedError.from_results([ScoreError("c", "m")] * 100)
    assert error.detail.startswith("100 of 100 conversations got no reward: conversation 0: c: m; ")
    assert "and 95 more (5, 6, 7," in error.detail
    assert len(error.detail) < 500
    assert len(error.failures) == 100


def test_failed_request_names_its_items_and_ends_the_call(
    stub: StubService, make_client: Callable[..., Any]
) -> None:
    # The other requests would wait for an hour, far longer than a test may take.
    stub.refusals = [(503, {"Retry-After": "3000"})] * 3 + [(400, {})]
    client = make_client(stub.url, retry_timeout_s=4000, max_concurrency=4)
    with pytest.raises(ServiceError, match=r"conversations \d+ to \d+ of 1024: .* 400: not now"):
        client.score([conversation(n) for n in range(1024)])


def test_dead_address_costs_few_retries(
    stub: StubService, make_client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The cooldown is longer than a test may take, so the dead address gets only the first requests.
    monkeypatch.setattr("serve.client.endpoints._INITIAL_BACKOFF_S", 3_600.0)
    monkeypatch.setattr("serve.client.endpoints._MAX_BACKOFF_S", 3_600.0)
    client = make_client([DEAD, stub.url], max_items=5, max_concurrency=4)
    assert client.score([conversation(n) for n in range(200)]) == list(range(200))
    assert 1 <= client.num_retries <= 4


def test_several_addresses_share_the_work(
    stub: StubService, other: StubService, make_client: Callable[..., Any]
) -> None:
    client = make_client([stub.url, other.url])
    assert client.score([conversation(n) for n in range(20)]) == list(range(20))
    for number in range(10):
        client.score([conversation(number)])
    first_shards = get_sent_numbers(stub)[0], get_sent_numbers(other)[0]
    assert [len(shard) for shard in first_shards] == [10, 10]
    assert len(stub.bodies) == len(other.bodies) == 6


def test_other_address_takes_over_from_one_that_refuses(
    stub: StubService, other: StubService, make_client: Callable[..., Any]
) -> None:
    stub.refusals = [(503, {"Retry-After": "3000"})]  # longer than a test may take
    client = make_client([stub.url, other.url], retry_timeout_s=0)
    for number in range(10):
        assert client.score([conversation(number)]) == [number]
    assert (len(stub.bodies), len(other.bodies)) == (0, 10)


def test_unreachable_addresses_raise_service_error(make_client: Callable[..., Any]) -> None:
    client = make_client([DEAD, "http://127.0.0.1:10"], retry_timeout_s=0)
    with pytest.raises(ServiceError, match=r"did not answer: .* \(tries: 2"):
        client.score([conversation(1)])


def test_rewards_with_different_fingerprints_raise_error(
    stub: StubService, other: StubService, make_client: Callable[..., Any]
) -> None:
    other.fingerprint = {"revision": "another"}
    client = make_client([stub.url, other.url])
    with pytest.raises(ServiceError, match="rewards of two models cannot be compared"):
        client.score([conversation(n) for n in range(20)])
    # Consecutive calls are checked as well.
    client = make_client([stub.url, other.url])
    client.score([conversation(1)])
    with pytest.raises(ServiceError, match="two models"):
        client.score([conversation(1)])
    # The caller may name the fingerprint that it expects.
    assert make_client(other.url, fingerprint=other.fingerprint).score([conversation(1)]) == [1]
    with pytest.raises(ServiceError, match="two models"):
        make_client(stub.url, fingerprint=other.fingerprint).score([conversation(1)])


def test_rewards_after_a_reload_are_accepted(
    stub: StubService, other: StubService, make_client: Callable[..., Any]
) -> None:
    client = make_client(stub.url)
    client.score([conversation(1)])
    stub.fingerprint = {**stub.fingerprint, "revision": "new", "version": "step-2"}
    assert client.score([conversation(2)]) == [2]
    assert client.fingerprint == stub.fingerprint
    stub.fingerprint = {**stub.fingerprint, "dtype": "float16", "version": "step-3"}
    with pytest.raises(ServiceError, match="two models"):
        client.score([conversation(3)])
    # Two addresses that stay at two versions.
    other.fingerprint = {**stub.fingerprint, "version": "step-4"}
    client = make_client([stub.url, other.url])
    with pytest.raises(ServiceError, match="replaced the model's weights during each of 4"):
        client.score([conversation(n) for n in range(20)])


@pytest.mark.parametrize("bad_reward", [None, True, "1", math.nan])
def test_reward_that_is_not_a_number_raises_error(
    stub: StubService,
    make_client: Callable[..., Any],
    bad_reward: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = {"reward": bad_reward, "num_tokens": 1, "truncated": False}
    monkeypatch.setattr(StubService, "_single", lambda self, item: result)
    with pytest.raises(ServiceError, match="returned an unexpected response"):
        make_client(stub.url).score([conversation(1)])


def test_numpy_arrays_are_sent_as_lists(stub: StubService, make_client: Callable[..., Any]) -> None:
    array = np.array(conversation(3), dtype=object)
    with_scalar = [{"role": "user", "content": "?", "weight": np.float32(0.5)}, conversation(4)[1]]
    assert make_client(stub.url).score([array, with_scalar]) == [3, 4]
    assert stub.bodies[0]["conversations"][1][0]["weight"] == 0.5


def test_compare_and_rank(stub: StubService, make_client: Callable[..., Any]) -> None:
    client = make_client(stub.url, "rm", max_items=4)
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


def test_empty_call_sends_no_request(stub: StubService, make_client: Callable[..., Any]) -> None:
    client = make_client(stub.url)
    assert client.score([]) == []
    assert client.compare([]) == []
    assert not stub.bodies


def test_progress_bar_is_shown_only_on_request(
    stub: StubService, make_client: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    client = make_client(stub.url, max_items=2)
    client.score([conversation(n) for n in range(5)])
    assert capfd.readouterr() == ("", "")
    client.score([conversation(n) for n in range(5)], progress=True)
    output = capfd.readouterr()
    assert output.out == ""
    assert "5/5" in output.err


def test_tools_argument_goes_into_the_body(
    make_client: Callable[..., Any], stub: StubService
) -> None:
    tools = [{"name": "tide", "default": None}]
    client = make_client(stub.url)
    client.score([conversation(1)], tools=tools)
    client.results([conversation(1)], tools="[]")
    client.compare([{"chosen": conversation(1), "rejected": conversation(2)}], tools=tools)
    client.rank(None, [conversation(1)], tools=tools)
    client.score([{"messages": conversation(1), "tools": tools}])
    sent = [body.get("tools", "none") for body in stub.bodies]
    assert sent == [[{"name": "tide"}], "[]", [{"name": "tide"}], [{"name": "tide"}], "none"]
    assert stub.bodies[3]["prompt"] is None
    assert stub.bodies[4]["conversations"][0]["tools"] == [{"name": "tide"}]


def test_backoff_does_not_use_global_random_generator() -> None:
    """A trainer's random numbers depend only on its seed, whatever its reward service does."""
    state = random.getstate()
    backoffs = {backoff_seconds(httpx.ConnectError("refused"), 3) for _ in range(10)}
    assert len(backoffs) > 1
    assert random.getstate() == state
