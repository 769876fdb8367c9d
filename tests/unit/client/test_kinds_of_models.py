"""Both clients with a step model, a judge and a classifier that run in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from stub_service import StubService, stub_service

from rm_core import ScoreError, sigmoid
from serve.client import ScoringFailedError, ServiceError

PROBLEM = "Jane has 12 apples and gives 4 to Mark. How many are left?"
SOLUTIONS = ["12 - 4 = 8\nSo Jane has 8.", "12 - 4 = 7", "8", "It is\n8\napples."]
QUESTION = "What is the capital of France?"
ANSWERS = ["Paris.", "The capital of France is Paris, a city on the Seine.", "I am sorry."]
PAIRS = [
    {"prompt": QUESTION, "chosen": a, "rejected": b} for a, b in itertools.permutations(ANSWERS, 2)
]


def post(app: TestClient, route: str, **body: Any) -> Any:
    return app.post(route, json=body).json()["results"]


def test_steps_are_split_and_keep_order(
    app: TestClient, service: StubService, make_client: Callable[..., Any]
) -> None:
    items: list[Any] = [{"prompt": PROBLEM, "response": text} for text in SOLUTIONS]
    items += [{"prompt": PROBLEM, "steps": ["12 - 4 = 8", "8"]}, {"prompt": PROBLEM}]
    expected = post(app, "/v1/steps", model="prm", items=items, aggregation="min")
    with stub_service(app) as other:
        client = make_client([service.url, other.url], "prm", max_items=2)
        results = client.steps([*items, ScoreError("c", "m")], aggregation="min")
        sizes = [len(body["items"]) for body in service.bodies + other.bodies]
    assert sorted(sizes) == [2, 2, 2]
    for result, wanted in zip(results[:5], expected, strict=False):
        assert list(result.step_rewards) == pytest.approx(wanted["step_rewards"], abs=1e-5)
        assert result.reward == min(result.step_rewards)
        assert (result.num_steps, result.aggregation) == (wanted["num_steps"], "min")
        assert result.num_tokens == wanted["num_tokens"]
    assert [result.code for result in results[5:]] == ["invalid_conversation", "c"]


def test_score_and_rank_of_step_model_have_step_rewards(
    service: StubService, make_client: Callable[..., Any]
) -> None:
    client = make_client(service.url, "prm")
    prompt = [{"role": "user", "content": PROBLEM}]
    answers = [{"role": "assistant", "content": text} for text in SOLUTIONS]
    sent = [[*prompt, answer] for answer in answers]
    results = client.results(sent, aggregation="mean")
    assert [len(result.step_rewards) for result in results] == [2, 1, 1, 3]
    for result in results:
        mean = sum(result.step_rewards) / len(result.step_rewards)
        assert result.reward == pytest.approx(mean)
    assert client.score(sent, aggregation="mean") == [result.reward for result in results]
    assert client.score(sent) == [result.step_rewards[-1] for result in results]
    ranking = client.rank(PROBLEM, SOLUTIONS, aggregation="mean")
    assert ranking.rewards == [result.reward for result in results]
    assert [r.step_rewards for r in ranking.responses] == [r.step_rewards for r in results]
    pair = {"prompt": PROBLEM, "chosen": SOLUTIONS[0], "rejected": SOLUTIONS[3]}
    (compared,) = client.compare([pair], aggregation="mean")
    assert compared.margin == results[0].reward - results[3].reward


def test_judge_gives_verdicts_instead_of_rewards(
    service: StubService, make_client: Callable[..., Any]
) -> None:
    client = make_client(service.url, "judge", max_items=4)
    verdicts = client.judge([*PAIRS, {"prompt": QUESTION, "chosen": "Paris."}])
    assert [len(body["pairs"]) for body in service.bodies] != [7]
    assert verdicts.pop().code == "invalid_conversation"
    for pair, verdict in zip(PAIRS, verdicts, strict=True):
        assert verdict.chosen_reward is verdict.rejected_reward is None
        given, swapped = verdict.orders
        assert verdict.margin == pytest.approx((given.log_odds + swapped.log_odds) / 2)
        assert verdict.consistent == ((given.log_odds > 0) == (swapped.log_odds > 0))
        assert verdict.probability == sigmoid(verdict.margin)
        assert 0 < given.label_mass < 1
        reverse = {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}
        assert verdicts[PAIRS.index(reverse)].margin == -verdict.margin
    assert client.compare(PAIRS) == verdicts
    (alone,) = client.judge(PAIRS[:1], orders="given")
    assert alone.orders == verdicts[0].orders[:1]
    assert 0 < alone.num_tokens < verdicts[0].num_tokens
    assert alone.consistent is None
    # The stub is a random model, which would reply with any token.
    assert alone.warnings[0].startswith("low_label_mass: ")
    with pytest.raises(ScoringFailedError, match="1 of 1 pairs got no reward"):
        client.compare([{"prompt": QUESTION, "chosen": "Paris."}])


def test_rank_of_judge_is_sent_whole(
    app: TestClient, service: StubService, make_client: Callable[..., Any]
) -> None:
    (expected,) = [post(app, "/v1/rank", model="judge", prompt=QUESTION, responses=ANSWERS)]
    with stub_service(app) as other:
        client = make_client([service.url, other.url], "judge")
        ranking = client.rank(QUESTION, ANSWERS)
        assert [len(b["responses"]) for b in service.bodies + other.bodies] == [3]
    assert ranking.rewards == [result["reward"] for result in expected]
    assert ranking.ranks == [result["rank"] for result in expected]
    assert [response.num_comparisons for response in ranking.responses] == [2, 2, 2]
    with pytest.raises(ServiceError, match="a judge compares each of 4 answers with all others"):
        make_client(service.url, "judge", max_items=2).rank(QUESTION, [*ANSWERS, "Lyon."])
    # The rewards of a classifier do not depend on each other.
    split = make_client(service.url, "rm", max_items=2).rank(QUESTION, [*ANSWERS, "Lyon."])
    assert (
        split.rewards == make_client(service.url, "rm").rank(QUESTION, [*ANSWERS, "Lyon."]).rewards
    )


def test_turns_have_the_rewards_of_their_parts(
    service: StubService, make_client: Callable[..., Any]
) -> None:
    whole = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "And of Spain?"},
        {"role": "assistant", "content": "far " * 2000},
    ]
    client = make_client(service.url, "rm")
    short = [*whole[:3], {"role": "assistant", "content": "Madrid."}]
    result, cut, bad = client.score_turns([short, whole, whole[:1]])
    assert [turn.message for turn in result.turn_rewards] == [1, 3]
    assert [turn.reward for turn in result.turn_rewards] == client.score([whole[:2], short])
    assert result.reward == result.turn_rewards[-1].reward
    first, last = cut.turn_rewards
    assert (first.reward, first.error) == (result.turn_rewards[0].reward, None)
    assert (cut.reward, last.error.code) == (None, "conversation_too_long")
    assert bad.code == "invalid_conversation"


@pytest.mark.parametrize(
    ("model", "call", "hint"),
    [
        ("rm", lambda client: client.steps([{"prompt": "q", "response": "a"}]), "/v1/score"),
        ("judge", lambda client: client.score([[{"role": "user", "content": "q"}]]), "/v1/compare"),
        ("prm", lambda client: client.score_turns([[]]), "/v1/steps"),
    ],
)
def test_wrong_kind_raises_service_error_with_its_code(
    service: StubService,
    make_client: Callable[..., Any],
    model: str,
    call: Callable[[Any], Any],
    hint: str,
) -> None:
    with pytest.raises(ServiceError, match=hint) as caught:
        call(make_client(service.url, model))
    assert (caught.value.status, caught.value.error_code) == (400, "wrong_kind")
    assert not caught.value.retryable


def test_judge_of_a_classifier_raises_error(
    service: StubService, make_client: Callable[..., Any]
) -> None:
    with pytest.raises(ServiceError, match="is not a judge"):
        make_client(service.url, "rm").judge(PAIRS)
