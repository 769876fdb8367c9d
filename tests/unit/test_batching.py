"""The queue before a model: merges what waits, keeps the order, loses nothing, outlives errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_core import ScoredBatch, ScoreError, pack
from serve.backends import LocalBackend
from serve.batch_choice import choose
from serve.batching import BatchQueue

Ids = tuple[int, ...]
SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), max_size=12)


def reward_of(sequence: Ids) -> float:
    return float(hash(sequence))


class Model:
    """Records the batches it is given; stands still at each one while `held`."""

    def __init__(self) -> None:
        self.batches: list[list[Ids]] = []
        self.num_computed_tokens = 0
        self.failure_at: Callable[[Sequence[Ids]], Exception | None] = lambda _: None
        self._go = threading.Event()
        self._go.set()
        self.entered = threading.Event()

    def hold(self) -> None:
        self._go.clear()
        self.entered.clear()

    def release(self) -> None:
        self._go.set()

    def score(self, sequences: Sequence[Ids]) -> ScoredBatch:
        self.batches.append(list(sequences))
        self.entered.set()
        assert self._go.wait(10)
        if failure := self.failure_at(sequences):
            raise failure
        num_tokens = pack(sequences, 10**6).num_tokens
        self.num_computed_tokens += num_tokens
        return ScoredBatch(tuple(map(reward_of, sequences)), num_tokens)

    def describe(self) -> dict[str, int]:
        return {"max_batch_tokens": 20}

    score_ids = score


@pytest.fixture
def model() -> Iterator[Model]:
    model = Model()
    yield model
    model.release()


@pytest.fixture
def held(model: Model) -> Iterator[tuple[BatchQueue, Future[ScoredBatch]]]:
    """A queue whose model stands at a batch of one; what is submitted now waits together."""
    queue = BatchQueue(model.score, 20)
    model.hold()
    first = queue.submit([(99,)])
    assert model.entered.wait(10)
    return queue, first


def rewards(future: Future[ScoredBatch]) -> list[float | ScoreError]:
    return list(future.result(10).rewards)


Held = tuple[BatchQueue, Future[ScoredBatch]]


def test_what_waits_goes_together_and_equal_sequences_once(model: Model, held: Held) -> None:
    queue, _ = held
    calls = [
        queue.submit([(1, 1, 1), (2, 2)]),
        queue.submit([(2, 2)]),
        queue.submit([(1, 1, 2), (2, 2), (1, 1, 2)]),
    ]
    model.release()
    assert rewards(calls[0]) == [reward_of((1, 1, 1)), reward_of((2, 2))]
    assert rewards(calls[1]) == [reward_of((2, 2))]
    assert rewards(calls[2]) == [reward_of(s) for s in ((1, 1, 2), (2, 2), (1, 1, 2))]
    assert [sorted(batch) for batch in model.batches] == [
        [(99,)],
        [(1, 1, 1), (1, 1, 2), (2, 2)],
    ]


def test_a_sequence_that_is_being_scored_is_not_scored_again(model: Model, held: Held) -> None:
    queue, first = held
    second = queue.submit([(99,), (5,)])
    model.release()
    assert rewards(first) == [reward_of((99,))]
    assert rewards(second) == [reward_of((99,)), reward_of((5,))]
    assert model.batches == [[(99,)], [(5,)]]


def test_what_arrives_later_joins_its_prompt_but_never_passes_the_oldest(
    model: Model, held: Held
) -> None:
    queue, _ = held
    prompt, other = (7,) * 12, (3,) * 12
    old = queue.submit([(*prompt, 1)])
    middle = queue.submit([(*other, 1), (*other, 2)])
    young = queue.submit([(*prompt, 2), (*prompt, 3)])
    model.release()
    for call in (old, middle, young):
        call.result(10)
    assert [{sequence[0] for sequence in batch} for batch in model.batches] == [{99}, {7}, {3}]


def test_the_oldest_is_in_every_batch(model: Model, held: Held) -> None:
    queue, first = held
    calls = [queue.submit([(i % 7, i, i, i, i, i, i, i)]) for i in range(60)]
    model.release()
    for call in (first, *calls):
        call.result(10)
    waiting = [(99,), *[(i % 7, i, i, i, i, i, i, i) for i in range(60)]]
    for batch in model.batches:
        assert waiting[0] in batch
        assert pack(batch, 10**6).num_tokens <= 20
        waiting = [sequence for sequence in waiting if sequence not in batch]
    assert waiting == []


def test_a_large_call_is_not_looked_at_as_a_whole_for_each_batch(
    model: Model, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, _ = held
    looked_at: list[int] = []

    def watched(sequences: Sequence[Ids], budget: int) -> list[Ids]:
        looked_at.append(sum(map(len, sequences)))
        return choose(sequences, budget)

    monkeypatch.setattr("serve.batching.choose", watched)
    call = queue.submit([(i,) * 5 for i in range(2000)])
    model.release()
    assert len(rewards(call)) == 2000
    assert max(looked_at) <= 5 * 20
    assert len(model.batches) == 1 + 2000 * 5 / 20


def test_much_that_shares_its_start_still_fills_a_batch(model: Model, held: Held) -> None:
    queue, _ = held
    prompt = (7,) * 9
    call = queue.submit([(*prompt, i) for i in range(22)])
    model.release()
    call.result(10)
    assert [len(batch) for batch in model.batches] == [1, 11, 11]


def test_what_nobody_waits_for_is_not_scored(model: Model, held: Held) -> None:
    queue, first = held
    gone = queue.submit([(1,), (2,)])
    stays = queue.submit([(2,), (3,)])
    assert gone.cancel()
    model.release()
    assert rewards(stays) == [reward_of((2,)), reward_of((3,))]
    assert sorted(model.batches[1]) == [(2,), (3,)]
    assert len(model.batches) == 2
    assert stays.result().num_computed_tokens == 2  # also what the other one would have paid
    assert rewards(first)


def test_a_call_given_up_while_its_batch_runs_leaves_the_others_alone(
    model: Model, held: Held
) -> None:
    queue, first = held
    model.release()
    first.result(10)
    model.hold()
    gone, stays = queue.submit([(1,)]), queue.submit([(2,)])
    assert model.entered.wait(10)
    assert gone.cancel()
    model.release()
    assert rewards(stays) == [reward_of((2,))]
    assert rewards(queue.submit([(1,)])) == [reward_of((1,))]


def test_a_failure_belongs_to_the_calls_of_its_batch(model: Model, held: Held) -> None:
    queue, first = held
    failure = RuntimeError("inside")
    model.failure_at = lambda batch: failure if (1,) * 15 in batch else None
    bad = queue.submit([(1,) * 15, (2,) * 15])  # one batch each
    good = queue.submit([(2,) * 15, (3,) * 15])
    model.release()
    with pytest.raises(RuntimeError, match="inside"):
        bad.result(10)
    assert rewards(good) == [reward_of((2,) * 15), reward_of((3,) * 15)]
    assert rewards(first)
    again = queue.submit([(4,)])
    assert rewards(again) == [reward_of((4,))]


def test_what_only_a_failed_call_wanted_is_dropped(model: Model, held: Held) -> None:
    queue, _ = held
    model.failure_at = lambda batch: RuntimeError() if (1,) * 15 in batch else None
    bad = queue.submit([(1,) * 15, (2,) * 15])
    model.release()
    with pytest.raises(RuntimeError):
        bad.result(10)
    assert rewards(queue.submit([(5,)]))
    assert not any((2,) * 15 in batch for batch in model.batches)


def test_a_wrong_number_of_rewards_is_a_failure(model: Model) -> None:
    queue = BatchQueue(lambda _: ScoredBatch((1.0,), 1), 20)
    with pytest.raises(AssertionError):
        queue.submit([(1,), (2,)]).result(10)
    assert rewards(queue.submit([(3,)])) == [1.0]


def test_an_error_of_one_sequence_stays_with_it() -> None:
    error = ScoreError("device_memory", "lower it")
    queue = BatchQueue(
        lambda batch: ScoredBatch(tuple(error if s == (1,) else 0.5 for s in batch), 2), 20
    )
    assert rewards(queue.submit([(2,), (1,)])) == [0.5, error]


def test_nothing_is_answered_at_once(model: Model) -> None:
    assert BatchQueue(model.score, 20).submit([]).result(0) == ScoredBatch((), 0)
    assert model.batches == []


def test_over_the_budget_goes_alone(model: Model, held: Held) -> None:
    queue, _ = held
    call = queue.submit([(1,), (2,) * 50, (3,)])
    model.release()
    call.result(10)
    assert [(2,) * 50] in model.batches


@given(st.lists(SEQUENCES, min_size=1, max_size=8), st.integers(1, 20))
def test_rewards_in_order_and_computed_tokens_add_up(calls: list[list[Ids]], budget: int) -> None:
    model = Model()
    queue = BatchQueue(model.score, budget)
    model.hold()
    futures = [queue.submit(sequences) for sequences in calls]
    model.release()
    answers = [future.result(10) for future in futures]
    for sequences, answer in zip(calls, answers, strict=True):
        assert list(answer.rewards) == [reward_of(sequence) for sequence in sequences]
        assert answer.num_computed_tokens >= 0
    assert sum(answer.num_computed_tokens for answer in answers) == model.num_computed_tokens
    scored = [sequence for batch in model.batches for sequence in batch]
    assert sorted(scored) == sorted({s for sequences in calls for s in sequences})


def test_many_callers_at_once_lose_nothing(model: Model) -> None:
    queue = BatchQueue(model.score, 20)

    def ask(caller: int) -> int:
        num_computed_tokens = 0
        for step in range(50):
            wanted = [(caller % 4, step, i) for i in range(step % 5)]
            answer = queue.submit(wanted).result(30)
            assert list(answer.rewards) == [reward_of(sequence) for sequence in wanted]
            num_computed_tokens += answer.num_computed_tokens
        return num_computed_tokens

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(ask, range(16))) == model.num_computed_tokens


def test_the_local_backend_shares_batches_and_cancels(model: Model) -> None:
    async def scenario() -> None:
        backend = LocalBackend(model)  # type: ignore[arg-type]
        model.hold()
        first = asyncio.create_task(backend.score([(99,)]))
        await asyncio.to_thread(model.entered.wait, 10)
        gone = asyncio.create_task(backend.score([(1,)]))
        stay = [asyncio.create_task(backend.score([(i,), (4,)])) for i in (2, 3)]
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.sleep(0.05)
        model.release()
        assert (await first).rewards == (reward_of((99,)),)
        for i, task in zip((2, 3), stay, strict=True):
            assert (await task).rewards == (reward_of((i,)), reward_of((4,)))

    asyncio.run(scenario())
    assert [sorted(batch) for batch in model.batches] == [[(99,)], [(2,), (3,), (4,)]]
