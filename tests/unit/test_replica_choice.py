"""Dispatcher with several replicas: a prompt is computed on one of them, and nobody waits long."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from dispatcher_harness import FINGERPRINT, Ids, RecordingMetrics, reward_of
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import VirtualTime

from rm_core import BatchResult, ModelInfo
from serve.errors import ReplicaLostError
from serve.scheduler.dispatcher import Dispatcher
from serve.worker.worker import SequenceBatch

SECONDS_PER_TOKEN = 0.001
PROMPT_TOKENS = 100
ANSWER_TOKENS = 10


def answer_to(prompt: int, number: int) -> Ids:
    """Return the token ids of an answer; those of a prompt are its number, again and again."""
    return (prompt,) * PROMPT_TOKENS + (1_000_000 + number,) * ANSWER_TOKENS


class CachingReplicas:
    """Replicas that each run one batch after another and keep the prompts that they computed.

    They take time by the tokens that they compute. As behind the service's router, a batch goes to
    the replica that the dispatcher prefers, if no other one has fewer calls.

    Attributes:
        sent: replica, first prompt and time of each batch that came.
        computed: replicas that computed each prompt.
        stuck: replicas whose batches never end.
        lost: replicas that are lost with their next batch, and replaced by empty ones.
    """

    def __init__(self, num_replicas: int) -> None:
        self.num_replicas = num_replicas
        self.sent: list[tuple[str, int, float]] = []
        self.computed: dict[int, list[str]] = {}
        self.stuck: set[str] = set()
        self.lost: set[str] = set()
        self._num_calls = {str(index): 0 for index in range(num_replicas)}
        self._locks = {name: asyncio.Lock() for name in self._num_calls}

    async def run_batch(self, batch: SequenceBatch, backlog_tokens: int) -> BatchResult:
        least = min(self._num_calls.values())
        free = [name for name, count in self._num_calls.items() if count == least]
        name = batch.preferred_replica if batch.preferred_replica in free else free[0]
        self.sent.append((name, batch[0][0], asyncio.get_running_loop().time()))
        self._num_calls[name] += 1
        try:
            async with self._locks[name]:
                if name in self.stuck:
                    await asyncio.Event().wait()
                return await self._run(name, batch)
        finally:
            self._num_calls[name] -= 1

    async def _run(self, name: str, batch: SequenceBatch) -> BatchResult:
        num_tokens = len(batch) * ANSWER_TOKENS
        for prompt in {sequence[0] for sequence in batch}:
            if name not in self.computed.get(prompt, []):
                self.computed.setdefault(prompt, []).append(name)
                num_tokens += PROMPT_TOKENS
        seconds = num_tokens * SECONDS_PER_TOKEN
        await asyncio.sleep(seconds)
        if name in self.lost:
            self.lost.remove(name)
            for names in self.computed.values():
                names[:] = [other for other in names if other != name]
            raise ReplicaLostError("killed", replica=name)
        outputs = tuple(map(reward_of, batch))
        return BatchResult(outputs, num_tokens, seconds, FINGERPRINT, replica=name)

    async def run_one_by_one(
        self, batch: SequenceBatch, backlog_tokens: int
    ) -> AsyncIterator[BatchResult | None]:
        yield None
        for sequence in batch:
            yield await self.run_batch(SequenceBatch((sequence,)), backlog_tokens)

    async def describe(self) -> ModelInfo:
        raise NotImplementedError

    async def refresh(self) -> None:
        return


class Harness:
    """A dispatcher and its replicas, which have run one batch each: their rate is known."""

    def __init__(self, num_replicas: int) -> None:
        self.replicas = CachingReplicas(num_replicas)
        self.dispatcher = Dispatcher(
            "rm", self.replicas, RecordingMetrics(), count_prompt_tokens=lambda _: PROMPT_TOKENS
        )
        self.dispatcher.max_batch_tokens = 10 * PROMPT_TOKENS
        self.dispatcher.prompts.max_tokens = 1_000 * PROMPT_TOKENS

    async def warm_up(self) -> dict[str, int]:
        """Let each replica compute one prompt; return the prompt that each has."""
        max_batch_tokens, self.dispatcher.max_batch_tokens = self.dispatcher.max_batch_tokens, 1
        prompts = range(100, 100 + self.replicas.num_replicas)
        await asyncio.gather(*[self.score(prompt, 0) for prompt in prompts])
        self.dispatcher.max_batch_tokens = max_batch_tokens
        return {self.replicas.computed[prompt][0]: prompt for prompt in prompts}

    async def score(self, *answers: int) -> None:
        """Score answers to a prompt, whose number is the first argument."""
        prompt, *numbers = answers
        sequences = [answer_to(prompt, number) for number in numbers]
        with self.dispatcher.open_flow("a", 0) as flow:
            outputs = await self.dispatcher.compute_outputs(flow, sequences)
        assert outputs == [reward_of(sequence) for sequence in sequences]

    def submit(self, *answers: int) -> asyncio.Task[None]:
        return asyncio.ensure_future(self.score(*answers))


def scenario(
    num_replicas: int,
) -> Callable[[Callable[[Harness], Coroutine[Any, Any, None]]], Callable[[], None]]:
    """Run a test with its own harness, on its own event loop with virtual time."""

    def decorate(test: Callable[[Harness], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        def run() -> None:
            async def run_test() -> None:
                async with asyncio.timeout(10_000):
                    await test(Harness(num_replicas))

            with asyncio.Runner(loop_factory=VirtualTime) as runner:
                runner.run(run_test())

        run.__doc__ = test.__doc__
        return run

    return decorate


@scenario(2)
async def test_answer_waits_for_replica_that_computes_its_prompt(harness: Harness) -> None:
    await harness.warm_up()
    first = harness.submit(1, 0)
    await asyncio.sleep(0.05)
    second = harness.submit(1, 1)
    other = harness.submit(2, 0)
    await asyncio.gather(first, second, other)
    (home,), (other_home,) = harness.replicas.computed[1], harness.replicas.computed[2]
    assert home != other_home
    assert [(name, prompt) for name, prompt, _ in harness.replicas.sent[-3:]] == [
        (home, 1),
        (other_home, 2),
        (home, 1),
    ]


@scenario(2)
async def test_idle_replicas_share_what_is_pending(harness: Harness) -> None:
    await harness.warm_up()
    await asyncio.gather(*[harness.score(prompt, 0) for prompt in range(8)])
    warm_up, shares = harness.replicas.sent[:2], harness.replicas.sent[2:]
    assert len(warm_up) == 2
    assert sorted(name for name, *_ in shares) == ["0", "1"]


@scenario(2)
async def test_answers_go_where_their_prompt_is(harness: Harness) -> None:
    prompts = await harness.warm_up()
    for number in range(1, 20):
        await asyncio.gather(*[harness.score(prompt, number) for prompt in prompts.values()])
    assert {prompt: [name] for name, prompt in prompts.items()} == harness.replicas.computed


@scenario(2)
async def test_answer_moves_if_its_replica_is_busy_for_long(harness: Harness) -> None:
    prompts = await harness.warm_up()
    home, prompt = next(iter(prompts.items()))
    harness.dispatcher.max_batch_tokens *= 10  # one batch, not two
    long = harness.submit(prompt, *range(1, 90))  # nine times as long as the prompt
    await asyncio.sleep(0.01)
    assert harness.replicas.sent[-1][:2] == (home, prompt)
    await harness.score(prompt, 99)
    assert not long.done()
    assert harness.replicas.computed[prompt] == list(prompts)
    await long


@scenario(2)
async def test_answer_does_not_wait_for_stuck_replica(harness: Harness) -> None:
    prompts = await harness.warm_up()
    home, prompt = next(iter(prompts.items()))
    harness.replicas.stuck.add(home)
    stuck = harness.submit(prompt, 1)
    await asyncio.sleep(0.001)
    await harness.score(prompt, 2)
    assert harness.replicas.computed[prompt] == list(prompts)
    assert not stuck.done()
    stuck.cancel()


@scenario(2)
async def test_lost_replica_has_no_prompts(harness: Harness) -> None:
    prompts = await harness.warm_up()
    home, prompt = next(iter(prompts.items()))
    harness.replicas.lost.add(home)
    await asyncio.gather(*[harness.score(prompt, number) for number in range(1, 5)])
    assert len(harness.replicas.computed[prompt]) == 1


@scenario(3)
async def test_replicas_without_known_rate_compute_all(harness: Harness) -> None:
    await asyncio.gather(*[harness.score(prompt, 0) for prompt in range(30)])
    assert len(harness.replicas.computed) == 30


@pytest.mark.parametrize("num_replicas", [2, 4, 8])
def test_prompts_of_answers_in_any_order_are_computed_about_once(num_replicas: int) -> None:
    answers = [(prompt, number) for prompt in range(64) for number in range(16)]
    random.Random(0).shuffle(answers)
    waiting = iter(answers)

    async def post_one_by_one(harness: Harness) -> None:
        for prompt, number in waiting:
            await harness.score(prompt, number)

    @scenario(num_replicas)
    async def run(harness: Harness) -> None:
        harness.dispatcher.max_batch_tokens = 3 * PROMPT_TOKENS
        await asyncio.gather(*[post_one_by_one(harness) for _ in range(64)])
        num_computed = sum(map(len, harness.replicas.computed.values()))
        num_answers = len(answers) * ANSWER_TOKENS
        assert num_computed * PROMPT_TOKENS + num_answers <= 1.25 * (
            64 * PROMPT_TOKENS + num_answers
        )

    run()


@given(
    num_replicas=st.integers(2, 4),
    arrivals=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 5), st.floats(0, 0.3)), max_size=30
    ),
    lost_at=st.integers(0, 40),
)
@settings(max_examples=50)
def test_every_answer_gets_its_reward(
    num_replicas: int, arrivals: list[tuple[int, int, float]], lost_at: int
) -> None:
    @scenario(num_replicas)
    async def run(harness: Harness) -> None:
        await harness.warm_up()
        tasks = []
        for index, (prompt, number, delay_s) in enumerate(arrivals):
            if index == lost_at:
                harness.replicas.lost.add("0")
            tasks.append(harness.submit(prompt, number))
            await asyncio.sleep(delay_s)
        await asyncio.gather(*tasks)

    run()
