"""The pool of actors on a real cluster of two workers on this machine, with losses of every kind.

One cluster and one pool for all tests, in the order of the file: Ray, and every actor, takes
seconds to start.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import pytest
from processes import Process, kill, processes_of
from waiting import PATIENCE_S

import rm_core.scorer
from rm_core import ModelConfig, ModelLoadError, Reward, RewardScorer, ScoreError, Truncation
from rm_core.inputs.conversations import Messages
from serve.jobs.executors import ray_actor_pool
from serve.jobs.executors.base import ScoreBatchResult
from serve.jobs.executors.ray_actor import ScorerActor
from serve.jobs.executors.ray_executor import RayExecutor

# Sums of floats differ with the number of threads: 1.2e-6 measured.
TOLERANCE = 1e-4
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
DEADLY = "the text that kills"
HANGS_WITHOUT = "the device hangs unless there is the file "
# A lost actor's successor imports torch and loads the model: minutes on a busy machine, and a
# conversation is given up after two of them.
LOSS_PATIENCE_S = 8 * PATIENCE_S
STUCK_AFTER_S = 30.0  # longer than a batch takes on a busy machine

pytestmark = pytest.mark.timeout(2 * LOSS_PATIENCE_S)


def poisonable() -> type[ScorerActor]:
    """An actor whose process ends like after a segmentation fault on one conversation.

    And whose device hangs on another one, unless it has hung on it before.
    """

    # In a function: so it goes to the workers by value, which cannot import this module.
    class PoisonableActor(ScorerActor):
        stuck_after_s = STUCK_AFTER_S

        def run_batch(
            self, conversations: Sequence[Messages], truncation: Truncation
        ) -> ScoreBatchResult:
            texts = [message["content"] for c in conversations for message in c]
            if any(DEADLY in text for text in texts):
                os._exit(139)
            for text in texts:
                file = Path(text.removeprefix(HANGS_WITHOUT))
                if text.startswith(HANGS_WITHOUT) and not file.exists():
                    file.touch()
                    forward = rm_core.scorer.forward_batch
                    rm_core.scorer.forward_batch = lambda *_: time.sleep(3600)
                    try:
                        return super().run_batch(conversations, truncation)
                    finally:
                        rm_core.scorer.forward_batch = forward
            return super().run_batch(conversations, truncation)

    return PoisonableActor


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers of one CPU each, and a head that is none."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "token")
    patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    patch.setenv("RAY_agent_register_timeout_ms", "100000")  # on a machine with much else to do
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray._raylet import AuthenticationTokenLoader, Config
    from ray.cluster_utils import Cluster

    # Whoever imported Ray before in this process made it read these variables.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    head = {**NODE, "num_cpus": 0, "include_dashboard": False}
    running = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        running.add_node(**NODE)
    try:
        yield running
    finally:
        running.shutdown()
        patch.undo()


@pytest.fixture(scope="module")
def pool(cluster: Any) -> Iterator[RayExecutor]:
    carrier = RayExecutor(ModelConfig("demo"), cluster.address, actor=poisonable())
    try:
        yield carrier
    finally:
        carrier.close()


@pytest.fixture(scope="module")
def scorer() -> RewardScorer:
    return RewardScorer.load(ModelConfig("demo"))


def conversation(text: str, answer: str = "Paris.") -> Messages:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def calls_of(name: str, num_calls: int = 16, size: int = 24) -> list[list[Messages]]:
    return [
        [
            conversation(
                f"{name} {call}, what of {i}? " + "the capital of France " * 8, "Paris" * i
            )
            for i in range(1, size + 1)
        ]
        for call in range(num_calls)
    ]


def submitted(pool: RayExecutor, calls: list[list[Messages]]) -> list[Future[ScoreBatchResult]]:
    return [pool.submit(call, "error") for call in calls]


def assert_right(
    futures: list[Future[ScoreBatchResult]], calls: list[list[Messages]], scorer: RewardScorer
) -> None:
    """All there, in order, and what a scorer here gives."""
    for future, call in zip(futures, calls, strict=True):
        got = [r.reward for r in future.result(LOSS_PATIENCE_S).results if isinstance(r, Reward)]
        expected = [r.reward for r in scorer.score(call) if isinstance(r, Reward)]
        assert got == pytest.approx(expected, abs=TOLERANCE)


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LOSS_PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def actors() -> list[Process]:
    return [p for p in processes_of(os.getpid()) if p.title.startswith("ray::PoisonableActor")]


@pytest.mark.parametrize("address", ["nowhere", "ray://", "127.0.0.1:1", "ray://127.0.0.1:1"])
def test_no_cluster_is_said_at_once(address: str) -> None:
    # Before there is one: a process that is in a cluster stays in it.
    pool = RayExecutor(ModelConfig("demo"), address)
    future = pool.submit([conversation("hi")], "error")
    with pytest.raises(ModelLoadError, match=r"no Ray cluster at .*`local`"):
        future.result(PATIENCE_S)
    pool.close()


def test_a_model_that_no_actor_can_load_ends_the_job(cluster: Any) -> None:
    pool = RayExecutor(ModelConfig("/nowhere/model"), cluster.address, num_actors=1)
    try:
        future = pool.submit([conversation("hi")], "error")
        with pytest.raises(ModelLoadError, match=r"no actor of the pool can score.*nowhere"):
            future.result(LOSS_PATIENCE_S)
        with pytest.raises(ModelLoadError, match="nowhere"):
            pool.submit([conversation("later")], "error").result(LOSS_PATIENCE_S)
    finally:
        pool.close()


def test_calls_come_back_in_order(pool: RayExecutor, scorer: RewardScorer) -> None:
    calls = calls_of("in order")
    futures = submitted(pool, calls)
    assert_right(futures, calls, scorer)
    until(lambda: pool.capacity == 4, "two actors with two calls each")
    assert len(actors()) == 2
    computed = sum(future.result().num_computed_tokens for future in futures)
    tokens = sum(r.num_tokens for f in futures for r in f.result().results)  # type: ignore[union-attr]
    assert 0 < computed < tokens


def test_what_cannot_be_scored_is_an_error_in_its_place(pool: RayExecutor) -> None:
    long = conversation("word " * 30_000)
    scored = pool.submit([long, conversation("short"), long], "error").result(LOSS_PATIENCE_S)
    first, second, third = scored.results
    assert isinstance(second, Reward)
    assert isinstance(first, ScoreError)
    assert isinstance(third, ScoreError)
    assert {first.code, third.code} == {"conversation_too_long"}


def test_a_killed_worker_costs_nothing_but_time(pool: RayExecutor, scorer: RewardScorer) -> None:
    calls = calls_of("killed", 20)
    futures = submitted(pool, calls)
    wait(futures, return_when=FIRST_COMPLETED)
    before = actors()
    assert kill(before[0])
    assert not all(future.done() for future in futures)
    assert_right(futures, calls, scorer)
    until(lambda: len({p.pid for p in actors()} - {before[0].pid}) == 2, "it is replaced")


def test_a_conversation_that_kills_is_given_up_alone(
    pool: RayExecutor, scorer: RewardScorer
) -> None:
    around = calls_of("around", 6)
    poisoned = [conversation("before"), conversation(DEADLY), conversation("after")]
    futures = submitted(pool, around[:3])
    deadly = pool.submit(poisoned, "error")
    futures += submitted(pool, around[3:])
    before, killer, after = deadly.result(LOSS_PATIENCE_S).results
    assert isinstance(before, Reward)
    assert isinstance(killer, ScoreError)
    assert isinstance(after, Reward)
    assert killer.code == "lost_replicas"
    assert "alone with 2 actors" in killer.message
    expected = scorer.score([poisoned[0], poisoned[2]])
    assert [before.reward, after.reward] == pytest.approx(
        [r.reward for r in expected if isinstance(r, Reward)], abs=TOLERANCE
    )
    assert_right(futures, around, scorer)


def test_a_device_that_hangs_is_left_for_another(
    pool: RayExecutor, scorer: RewardScorer, tmp_path: Path
) -> None:
    calls = calls_of("hangs", 4)
    file = tmp_path / "has-hung"
    calls[1] = [*calls[1], conversation(f"{HANGS_WITHOUT}{file}")]
    before = {process.pid for process in actors()}
    futures = submitted(pool, calls)
    assert_right(futures, calls, scorer)
    assert file.exists()
    until(lambda: len({p.pid for p in actors()} - before) == 1, "one is replaced")
    until(lambda: len(actors()) == 2, "the one that hangs is ended")


def test_a_process_that_says_nothing_is_left_for_another(
    pool: RayExecutor, scorer: RewardScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_actor_pool, "_MAX_SILENT_LOOKS", 2)
    until(lambda: pool.capacity == 4, "both actors are up")
    calls = calls_of("silent", 20)
    futures = submitted(pool, calls)
    wait(futures, return_when=FIRST_COMPLETED)
    silent = actors()[0]
    os.kill(silent.pid, signal.SIGSTOP)
    try:
        assert not all(future.done() for future in futures)
        assert_right(futures, calls, scorer)
        until(lambda: silent.pid not in {p.pid for p in actors()}, "it is ended")
    finally:
        kill(silent)


def test_the_pool_grows_with_the_cluster_and_lives_with_less(
    cluster: Any, pool: RayExecutor, scorer: RewardScorer
) -> None:
    until(lambda: pool.capacity == 4, "both actors are up")
    added = cluster.add_node(**NODE)
    calls = calls_of("grows", 4)
    assert_right(submitted(pool, calls), calls, scorer)
    until(lambda: pool.capacity == 6, "an actor on the new node")
    calls = calls_of("shrinks", 24)
    futures = submitted(pool, calls)
    wait(futures, return_when=FIRST_COMPLETED)
    cluster.remove_node(added, allow_graceful=False)
    assert not all(future.done() for future in futures)
    assert_right(futures, calls, scorer)
    until(lambda: pool.capacity == 4, "the other two are left")
