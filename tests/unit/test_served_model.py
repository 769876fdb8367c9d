"""A served model that is replaced during a request, and the slices of requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest
from fakes import INFO, FakeBackend, conversation
from waiting import until_async

from rm_core import BatchResult, NotReadyError, PrerenderedText, PrerenderedTokens, Reward
from rm_core.inputs.text_tokenizer import TokenizerChoice
from serve.config.model_settings import ModelSettings
from serve.errors import ModelAsleepError, ReplicaLostError, RequestTooLargeError
from serve.scoring.served_model import ScoreResult, ServedModel
from serve.scoring.tokenization import RequestOptions, estimate_sizes, split_into_slices

OTHER = replace(INFO, revision="other")
CONVERSATIONS = [conversation("4"), conversation("five")]


def create_model(backend: FakeBackend) -> ServedModel:
    model = ServedModel(ModelSettings(name="demo", alias="demo"), backend)
    model.update_info(backend.info)
    return model


def score(model: ServedModel, conversations: Sequence[Any] = CONVERSATIONS) -> ScoreResult:
    return asyncio.run(model.score(conversations, RequestOptions()))


def rewards(result: ScoreResult) -> list[float | None]:
    return [r.reward if isinstance(r, Reward) else None for r in result.results]


def test_request_is_rescored_if_model_is_replaced_meanwhile() -> None:
    backend = FakeBackend()
    model = create_model(backend)
    first = rewards(score(model, CONVERSATIONS[:1]))
    backend.info = OTHER  # the next replica has another checkpoint
    backend.reward = lambda _: 0.25
    result = score(model)
    assert rewards(result) == [0.25, 0.25]
    assert rewards(result)[:1] != first
    assert result.fingerprint.revision == "other"
    assert model.model_info == OTHER


def test_cached_rewards_belong_to_fingerprint() -> None:
    backend = FakeBackend()
    model = create_model(backend)
    before = rewards(score(model))
    backend.info = OTHER
    backend.reward = lambda _: 0.25
    score(model)
    backend.info = INFO
    model.update_info(INFO)  # and back again: its cached rewards are still valid
    again = score(model)
    assert rewards(again) == before
    assert again.num_cached_tokens == again.num_tokens
    assert again.fingerprint.revision == INFO.revision


def test_rewards_of_disagreeing_replicas_are_not_mixed() -> None:
    backend = FakeBackend()
    model = create_model(backend)
    run_batch = backend.run_batch

    in_turn = cycle([INFO.fingerprint, OTHER.fingerprint])

    async def alternate(*batch: Any) -> BatchResult:
        return replace(await run_batch(*batch), fingerprint=next(in_turn))

    backend.run_batch = alternate  # type: ignore[method-assign]
    with pytest.raises(NotReadyError, match="being replaced; try again"):
        score(model, [conversation("x " * n) for n in range(60, 90)])


def test_known_version_is_accepted_while_replicas_switch() -> None:
    """The replica that would be asked for its settings may not have switched yet."""
    backend = FakeBackend()
    model = create_model(backend)
    model.update_info(OTHER)
    backend.load_failure = ReplicaLostError("gone", replica="one")
    assert score(model).fingerprint == INFO.fingerprint
    assert model.model_info == OTHER


def test_gateway_learns_of_commands_to_another_gateway() -> None:
    backend = FakeBackend()
    model = create_model(backend)

    async def run() -> None:
        watcher = asyncio.create_task(model.watch())
        backend.info = replace(OTHER, encoding_sha256=model.encoder.encoding_sha256)
        await until_async(lambda: model.model_info == backend.info)
        backend.sleep_level = 2
        await until_async(lambda: model.state == "asleep")
        with pytest.raises(ModelAsleepError, match="level 2"):
            await model.score(CONVERSATIONS, RequestOptions())
        backend.sleep_level = 0
        await until_async(lambda: model.state == "ready")
        await model.score(CONVERSATIONS, RequestOptions())
        watcher.cancel()

    asyncio.run(run())


def test_replica_with_another_tokenizer_is_refused() -> None:
    """Its token ids mean something else: it would return a plausible reward of another text."""
    backend = FakeBackend()
    model = create_model(backend)
    score(model)
    backend.info = replace(OTHER, encoding_sha256="of another")
    with pytest.raises(NotReadyError, match="another tokenizer"):
        score(model, [conversation("new")])


def test_replica_lost_while_fetching_info_is_not_ready() -> None:
    backend = FakeBackend()
    model = create_model(backend)
    backend.info = OTHER
    backend.load_failure = ReplicaLostError("gone", replica="one")
    with pytest.raises(NotReadyError, match="gone; try again"):
        score(model)


def slice_conversations(conversations: Sequence[object]) -> list[Sequence[object]]:
    sizes = estimate_sizes(conversations, 10**9)
    return [slice_ for slice_, _ in split_into_slices(conversations, sizes)]


def test_slices_keep_order_and_limits() -> None:
    short = [conversation(str(i)) for i in range(150)]
    assert [len(slice_) for slice_ in slice_conversations(short)] == [64, 64, 22]
    assert [c for slice_ in slice_conversations(short) for c in slice_] == short
    long = [conversation("x" * 30_000), conversation("y" * 30_000), conversation("z")]
    assert [len(slice_) for slice_ in slice_conversations(long)] == [2, 1]
    assert slice_conversations([]) == []
    odd: list[object] = [None, 7, "text", [{"content": 5}], [3], {"a": 1}]
    assert slice_conversations(odd) == [odd]


def test_slices_count_all_rendered_content() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"text": "x" * 30_000}}}
    tool_call: dict[str, object] = {"role": "assistant", "content": None, "tool_calls": [call]}
    reasoning = {"role": "assistant", "content": "4", "reasoning_content": "x" * 30_000}
    parts = {"role": "user", "content": [{"type": "text", "text": "x" * 30_000}]}
    for item in (
        [tool_call, *conversation("4")],
        [*conversation("4")[:1], reasoning],
        [parts, *conversation("4")[1:]],
        PrerenderedTokens((1,) * 30_000),
        PrerenderedText("x" * 30_000),
    ):
        assert [len(slice_) for slice_ in slice_conversations([item] * 5)] == [2, 2, 1]
        with pytest.raises(RequestTooLargeError, match="more than 149,999 characters"):
            estimate_sizes([item] * 5, 149_999)


def test_slices_count_tools_for_each_conversation() -> None:
    tools = [{"name": "x" * 10_000, "parameters": ["y" * 20_000]}]
    shared = [{"messages": conversation("4"), "tools": tools} for _ in range(5)]
    assert [len(slice_) for slice_ in slice_conversations(shared)] == [2, 2, 1]
    assert [c for slice_ in slice_conversations(shared) for c in slice_] == shared
    odd: list[object] = [
        {"messages": 5, "tools": 7},
        {"tools": []},
        {"messages": conversation("4")},
    ]
    assert slice_conversations(odd) == [odd]


def test_tokenizer_in_use_is_reported_as_it_changes() -> None:
    model = create_model(FakeBackend())
    before = model.model_info
    assert before is not None
    assert before.tokenizer_reason == model.encoder.text_tokenizer.choice.reason
    assert model.metrics_state.num_tokenizer_differences == 0
    model.encoder.text_tokenizer.choice = TokenizerChoice("tokenizers", "a difference")
    model.encoder.text_tokenizer.num_differences = 1
    assert model.model_info == replace(
        before, tokenizer="tokenizers", tokenizer_reason="a difference"
    )
    assert model.metrics_state.num_tokenizer_differences == 1
