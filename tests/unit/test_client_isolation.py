"""Isolation of clients in the service: queue capacity, priority, cached rewards, limits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
from dispatcher_harness import DispatcherHarness, scenario, until
from fakes import FakeBackend, conversation, ready, serving
from waiting import until as until_now

from rm_core import BatchResult, OverloadedError
from rm_core.packing import TokenIds
from serve.config.model_settings import ModelSettings
from serve.errors import RequestTooLargeError
from serve.scheduler.batching import compute_tree_size
from serve.scoring.served_model import ScoreResult, ServedModel
from serve.scoring.tokenization import RequestOptions
from serve.worker.worker import SequenceBatch

CONVERSATIONS = [conversation("4"), conversation("five")]


def build_model(backend: FakeBackend, shares_rewards: bool) -> ServedModel:
    settings = ModelSettings(name="demo", alias="demo")
    model = ServedModel(settings, backend, shares_rewards=shares_rewards)
    model.update_info(backend.info)
    return model


async def score(model: ServedModel, name: str) -> ScoreResult:
    return await model.score(CONVERSATIONS, RequestOptions(client=name))


@pytest.mark.parametrize("shares_rewards", [True, False])
def test_cached_rewards_are_shared_between_clients_only_if_set(shares_rewards: bool) -> None:
    async def run() -> None:
        model = build_model(FakeBackend(), shares_rewards)
        first, second, other = [await score(model, name) for name in ("a", "a", "b")]
        assert second.num_cached_tokens == second.num_tokens > 0
        if shares_rewards:
            assert other.num_cached_tokens == other.num_tokens
        else:
            assert (other.num_cached_tokens, other.num_computed_tokens) == (
                first.num_cached_tokens,
                first.num_computed_tokens,
            )
        assert first.results == second.results == other.results

    asyncio.run(run())


class PrefixSharingBackend(FakeBackend):
    """Computes a common prefix once, as a worker does: a client pays alike in one batch or two."""

    async def run_batch(self, sequences: Sequence[TokenIds], backlog_tokens: int) -> BatchResult:
        result = await super().run_batch(sequences, backlog_tokens)
        return replace(result, num_computed_tokens=compute_tree_size(sorted(sequences)))


def test_tokens_in_flight_for_another_client_count_as_computed() -> None:
    async def run(names: tuple[str, ...]) -> list[ScoreResult]:
        backend = PrefixSharingBackend()
        backend.gate = asyncio.Event()
        model = build_model(backend, shares_rewards=False)
        num_tokens = sum(model.encoder.encode(messages).num_tokens for messages in CONVERSATIONS)
        waiting = [asyncio.ensure_future(score(model, name)) for name in names]
        tokens_by_client = model.dispatcher.tokens_by_client
        await until(lambda: sum(tokens_by_client.values()) == len(names) * num_tokens)
        backend.gate.set()
        return list(await asyncio.gather(*waiting))

    (alone,) = asyncio.run(run(("b",)))
    _, concurrent = asyncio.run(run(("a", "b")))
    assert concurrent.num_computed_tokens == alone.num_computed_tokens
    assert asyncio.run(run(("a", "a")))[1].num_computed_tokens == 0


@scenario
async def test_priority_orders_only_within_a_client(harness: DispatcherHarness) -> None:
    await harness.hold()
    normal = harness.submit(*[(i,) * 20 for i in range(3)])
    urgent = harness.submit(*[(10 + i,) * 20 for i in range(6)], priority=-1000)
    other = harness.submit((77,) * 20, client="b")
    await until(lambda: harness.dispatcher.num_waiting == 10)
    harness.release()
    await asyncio.gather(normal, urgent, other)
    order = [batch[0][0] for batch in harness.replicas.batches[1:]]
    assert order == [77, *range(10, 16), 0, 1, 2]


@scenario
async def test_queued_tokens_are_counted_per_client(harness: DispatcherHarness) -> None:
    await harness.hold()
    large = harness.submit(*[(i,) * 20 for i in range(3)])
    small = harness.submit((0,) * 20, client="b")
    await until(lambda: harness.dispatcher.tokens_by_client.get("b", 0) == 20)
    assert harness.dispatcher.tokens_by_client["a"] == 61
    large.cancel()
    await until(lambda: harness.dispatcher.tokens_by_client.get("a", 0) == 1)
    harness.release()
    await small
    await until(lambda: not harness.dispatcher.tokens_by_client)


def test_client_is_refused_only_above_its_share() -> None:
    async def run() -> None:
        backend = FakeBackend()
        model = build_model(backend, shares_rewards=False)
        await score(model, "c")  # so that the throughput is known
        backend.gate = asyncio.Event()
        waiting = asyncio.ensure_future(score(model, "a"))
        await until(lambda: "a" in model.dispatcher.tokens_by_client)
        num_tokens = model.dispatcher.tokens_by_client["a"]
        model.check_capacity("a", num_tokens + 1)
        with pytest.raises(OverloadedError, match="of your tokens are queued") as caught:
            model.check_capacity("a", num_tokens)
        assert (caught.value.retry_after_s or 0) >= 1
        model.check_capacity("b", 1)  # a client without queued tokens is admitted
        other = asyncio.ensure_future(score(model, "b"))
        await until(lambda: "b" in model.dispatcher.tokens_by_client)
        model.check_capacity("a", 2 * (num_tokens + 1))
        with pytest.raises(OverloadedError, match=r"for 2 client\(s\)"):
            model.check_capacity("a", 2 * num_tokens)
        backend.gate.set()
        await asyncio.gather(waiting, other)
        model.check_capacity("a", 1)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            RequestOptions(max_request_characters=2_000),
            "more than 2,000 characters .* split it",
        ),
        (
            RequestOptions(max_request_tokens=1_000),
            r"[\d,]+ tokens and the limit is 1,000; split it",
        ),
    ],
)
def test_request_above_limits_is_refused(options: RequestOptions, message: str) -> None:
    prompt = {"role": "user", "content": "word " * 100}
    answers = [[prompt, {"role": "assistant", "content": str(i)}] for i in range(100)]
    model = build_model(FakeBackend(), shares_rewards=True)
    for number in (1, 2):
        assert asyncio.run(model.score(answers[:number], options)).results
    with pytest.raises(RequestTooLargeError, match=message):
        asyncio.run(model.score(answers, options))
    with pytest.raises(RequestTooLargeError, match=message):
        asyncio.run(model.encode(answers, options))


def test_too_large_request_gets_413(monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(RequestOptions, max_request_characters=1_000)
    monkeypatch.setattr("serve.scoring.service.RequestOptions", small)
    with serving(FakeBackend()) as http:
        until_now(lambda: ready(http))
        body = {"prompt": "word " * 50, "responses": ["yes"] * 10}
        refused = http.post("/v1/rank", json=body)
        assert refused.status_code == 413
        assert refused.json()["error"]["code"] == "request_too_large"
        assert http.post("/v1/rank", json={**body, "responses": ["yes"]}).status_code == 200


@pytest.mark.parametrize("shares_rewards", [True, False])
def test_prompts_of_clients_are_salted_if_they_share_nothing(shares_rewards: bool) -> None:
    backend = FakeBackend()

    async def run() -> None:
        model = build_model(backend, shares_rewards)
        for name in ("a", "b"):
            await score(model, name)

    asyncio.run(run())
    salts = [SequenceBatch.wrap(batch).salts for batch in backend.batches]
    assert salts == ([()] if shares_rewards else [("a", "a"), ("b", "b")])
