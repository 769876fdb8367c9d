"""`/v1/score` of a running service: correct, in order, and bad items do not affect others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from checkpoints import PathOf
from reference import Reference

from rm_core import ModelConfig, Reward, RewardScorer, seeds_dir


def conversation(question: str, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


VARIED = [
    conversation("What is the capital of France?", "The capital of France is Paris."),
    conversation("中国的首都是哪里？", "中国的首都是北京。😀"),
    conversation("Say nothing.", ""),
    [
        *conversation("Hi", "Hello! How can I help?"),
        *conversation("Write a poem of many lines. " * 40, "Roses are red,\n" * 30),
    ],
]


@pytest.mark.parametrize(
    ("model", "folder"), [("demo", None), ("llama", "llama-v0.1"), ("gemma", "gemma2")]
)
def test_rewards_equal_plain_transformers(
    http: httpx.Client, checkpoint_of: PathOf, model: str, folder: str | None
) -> None:
    reference = Reference(checkpoint_of(folder) if folder else seeds_dir() / "demo")
    answer = http.post("/v1/score", json={"model": model, "conversations": VARIED})
    assert answer.status_code == 200
    body = answer.json()
    for messages, result in zip(VARIED, body["results"], strict=True):
        assert result["reward"] == pytest.approx(reference.reward(messages), abs=1e-4)
        assert result["num_tokens"] == len(reference.input_ids(messages))
        assert result["truncated"] is False
    assert [result["index"] for result in body["results"]] == [0, 1, 2, 3]
    assert body["usage"]["num_tokens"] == sum(r["num_tokens"] for r in body["results"])
    assert body["model"] == model
    assert body["id"].startswith("score-")
    assert body["object"] == "list"
    assert set(body["fingerprint"]) == {"revision", "template_sha256", "dtype", "attention"}


def test_identical_conversations_are_computed_once_and_cached(http: httpx.Client) -> None:
    pear, plum = (
        conversation("A fruit of this test alone?", text) for text in ("Pear.", "A plum.")
    )
    body = {"model": "llama", "conversations": [pear, plum, pear]}
    answer = http.post("/v1/score", json=body).json()
    first, second, third = answer["results"]
    assert first["reward"] == third["reward"] != second["reward"]
    distinct = first["num_tokens"] + second["num_tokens"]
    assert answer["usage"]["num_tokens"] == distinct + third["num_tokens"]
    assert first["num_tokens"] < answer["usage"]["num_computed_tokens"] < distinct  # one prompt
    assert answer["usage"]["num_cached_tokens"] == 0
    before = http.get("/info").json()["models"]["llama"]["score_cache"]
    again = http.post("/v1/score", json=body).json()
    assert again["results"] == answer["results"]
    assert again["usage"]["num_computed_tokens"] == 0
    assert again["usage"]["num_cached_tokens"] == again["usage"]["num_tokens"]
    assert http.get("/info").json()["models"]["llama"]["score_cache"]["hits"] == before["hits"] + 3


BAD: list[tuple[Any, str, str]] = [
    ([], "invalid_conversation", "at least one message"),
    ("2+2?", "invalid_conversation", "list of messages"),
    (None, "invalid_conversation", "list of messages"),
    ([{"role": "user", "content": "2+2?"}], "invalid_conversation", "append the answer"),
    (conversation("2+2?", None), "invalid_conversation", "give a string"),
    (conversation("2+2?", 4), "invalid_conversation", "must be a string"),
    ([{"role": "judge", "content": "4"}], "invalid_conversation", "allowed: system, user"),
    ([{"content": "4"}], "invalid_conversation", "no `role`"),
    (
        conversation("2+2?", [{"type": "image_url", "image_url": {"url": "x"}}]),
        "invalid_conversation",
        "this model reads only text",
    ),
    (conversation("word " * 3000, "ok"), "conversation_too_long", 'truncation "left"'),
]


def test_bad_conversations_get_errors_and_others_rewards(
    http: httpx.Client, checkpoint_of: PathOf
) -> None:
    """990 rewards, and 10 errors at their indices, each with advice."""
    conversations: list[Any] = [
        conversation(f"What is {i} + {i}?", f"{i} + {i} = {2 * i}.") for i in range(1000)
    ]
    bad_items = {37 + 97 * i: bad for i, bad in enumerate(BAD)}
    for index, (bad, _, _) in bad_items.items():
        conversations[index] = bad
    answer = http.post("/v1/score", json={"model": "llama", "conversations": conversations})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["index"] for result in results] == list(range(1000))
    for index, (_, code, advice) in bad_items.items():
        assert "reward" not in results[index]
        assert results[index]["error"]["code"] == code
        assert advice in results[index]["error"]["message"]
    good = [result for result in results if "error" not in result]
    assert len(good) == 990
    assert all(isinstance(result["reward"], float) for result in good)
    reference = Reference(checkpoint_of("llama-v0.1"))
    for index in (0, 500, 999):
        expected = reference.reward(conversations[index])
        assert results[index]["reward"] == pytest.approx(expected, abs=1e-4)


def test_template_exception_is_error_of_conversation(http: httpx.Client) -> None:
    with_system = [{"role": "system", "content": "Be brief."}, *VARIED[0]]
    body = {"model": "gemma", "conversations": [VARIED[0], with_system, VARIED[1]]}
    first, second, third = http.post("/v1/score", json=body).json()["results"]
    assert "reward" in first
    assert "reward" in third
    assert second["error"]["code"] == "template_error"
    assert "System role not supported" in second["error"]["message"]


def test_results_keep_order_under_concurrency(http: httpx.Client, checkpoint_of: PathOf) -> None:
    # Each conversation is in two requests: some are computed for both at once, some are cached.
    conversations = [
        conversation(f"Count to {i % 7}.", f"{request}: " + "one " * i)
        for request in range(12)
        for i in range(1, 41)
    ] * 2
    config = ModelConfig(str(checkpoint_of("llama-v0.1")), device="cpu")
    scored = RewardScorer.load(config).score(conversations)
    expected = [result.reward for result in scored if isinstance(result, Reward)]

    def post(start: int) -> list[float]:
        body = {"model": "llama", "conversations": conversations[start : start + 40]}
        return [r["reward"] for r in http.post("/v1/score", json=body).json()["results"]]

    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(post, range(0, len(conversations), 40)))
    rewards = [reward for response in responses for reward in response]
    assert rewards == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("truncation", ["left", "right"])
def test_truncation_is_reported(http: httpx.Client, truncation: str) -> None:
    long = conversation("word " * 3000, "The answer.")
    body = {"model": "llama", "conversations": [long, VARIED[0]], "truncation": truncation}
    cut, whole = http.post("/v1/score", json=body).json()["results"]
    assert cut["truncated"] is True
    assert cut["num_tokens"] <= 2048
    assert whole["truncated"] is False


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        ({"model": "gpt", "conversations": []}, 404, "served: demo, llama, gemma"),
        ({"conversations": []}, 400, "several are served: demo, llama, gemma"),
        ({"model": "llama"}, 400, "give either `conversations`"),
        ({"model": "llama", "conversations": "x"}, 400, "conversations: "),
        ({"model": "llama", "conversations": [], "truncate": 1}, 400, "truncate: unknown field"),
        ({"model": "llama", "conversations": [], "truncation": "middle"}, 400, "'left'"),
        ([], 400, ""),
        ("{", 400, "the body is not valid JSON"),
    ],
)
def test_malformed_body_is_rejected_with_reason(
    http: httpx.Client, body: Any, status: int, expected: str
) -> None:
    if isinstance(body, str):
        headers = {"content-type": "application/json"}
        answer = http.post("/v1/score", content=body, headers=headers)
    else:
        answer = http.post("/v1/score", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert expected in error["message"]


def test_empty_list_of_conversations_gives_no_results(http: httpx.Client) -> None:
    answer = http.post("/v1/score", json={"model": "llama", "conversations": []})
    assert answer.status_code == 200
    assert answer.json()["results"] == []
