"""The Ray executor on a real cluster of two local nodes, with losses of every kind.

All tests share one cluster and one pool, in the order of the file, because Ray and every actor take
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
# The successor of a lost actor imports torch and loads the model, which takes minutes on a busy
# machine, and a conversation is quarantined only after two lost actors.
LOSS_PATIENCE_S = 8 * PATIENCE_S
STUCK_AFTER_S = 30.0  # longer than a batch takes on a busy machine

pytestmark = pytest.mark.timeout(2 * LOSS_PATIENCE_S)


def create_crashing_actor() -> type[ScorerActor]:
    """Return an actor class whose process dies, as by a segmentation fault, on one conversation.

    Its device hangs on another conversation, at the first time only.
    """

    # A class in a function is sent to the workers by value; they cannot import this module.
    class CrashingActor(ScorerActor):
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
                    assert self._scorer is not None
                    forward = self._scorer._forward
                    self._scorer._forward = lambda *_: time.sleep(3600)  # type: ignore[func-returns-value]
                    try:
                        return super().run_batch(conversations, truncation)
                    finally:
                        self._scorer._forward = forward
            return super().run_batch(conversations, truncation)

    return CrashingActor


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start two nodes with one CPU each, and a head without CPUs."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "token")
    patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    patch.setenv("RAY_agent_register_timeout_ms", "100000")  # on a machine with much else to do
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray._raylet import AuthenticationTokenLoader, Config
    from ray.cluster_utils import Cluster

    # An earlier import of Ray in this process has already read these variables.
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
    executor = RayExecutor(ModelConfig("demo"), cluster.address, actor=create_crashing_actor())
    try:
        yield executor
    finally:
        executor.close()


@pytest.fixture(scope="module")
def scorer() -> RewardScorer:
    return RewardScorer.load(ModelConfig("demo"))


def conversation(text: str, answer: str = "Paris.") -> Messages:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def create_calls(name: str, num_calls: int = 16, size: int = 24) -> list[list[Messages]]:
    return [
        [
            conversation(
                f"{name} {call}, what of {i}? " + "the capital of France " * 8, "Paris" * i
            )
            for i in range(1, size + 1)
        ]
        for call in range(num_calls)
    ]


def submit_all(pool: RayExecutor, calls: list[list[Messages]]) -> list[Future[ScoreBatchResult]]:
    return [pool.submit(call, "error") for call in calls]


def assert_right(
    futures: list[Future[ScoreBatchResult]], calls: list[list[Messages]], scorer: RewardScorer
) -> None:
    """Check that all results are there, in order, and equal to those of a local scorer."""
    for future, call in zip(futures, calls, strict=True):
        got = [r.reward for r in future.result(LOSS_PATIENCE_S).results if isinstance(r, Reward)]
        expected = [r.reward for r in scorer.score(call) if isinstance(r, Reward)]
        assert got == pytest.approx(expected, abs=TOLERANCE)


def until(is_true: Callable[[], bool], condition: str) -> None:
    deadline = time.monotonic() + LOSS_PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, condition
        time.sleep(0.2)


def actors() -> list[Process]:
    return [p for p in processes_of(os.getpid()) if p.title.startswith("ray::CrashingActor")]


@pytest.mark.parametrize("address", ["nowhere", "ray://", "127.0.0.1:1", "ray://127.0.0.1:1"])
def test_missing_cluster_is_reported_at_once(address: str) -> None:
    # Runs before a cluster exists, because a process that has joined one stays connected.
    pool = RayExecutor(ModelConfig("demo"), address)
    future = pool.submit([conversation("hi")], "error")
    with pytest.raises(ModelLoadError, match=r"no Ray cluster at .*`local`"):
        future.result(PATIENCE_S)
    pool.close()


def test_model_that_no_actor_can_load_fails_calls(cluster: Any) -> None:
    pool = RayExecutor(ModelConfig("/nowhere/model"), cluster.address, num_actors=1)
    try:
        future = pool.submit([conversation("hi")], "error")
        with pytest.raises(ModelLoadError, match=r"no actor of the pool can score.*nowhere"):
            future.result(LOSS_PATIENCE_S)
        with pytest.raises(ModelLoadError, match="nowhere"):
            pool.submit([conversation("later")], "error").result(LOSS_PATIENCE_S)
    finally:
        pool.close()


def test_results_are_in_order(pool: RayExecutor, scorer: RewardScorer) -> None:
    calls = create_calls("in order")
    futures = submit_all(pool, calls)
    assert_right(futures, calls, scorer)
    until(lambda: pool.capacity == 4, "two actors with two calls each")
    assert len(actors()) == 2
    computed = sum(future.result().num_computed_tokens for future in futures)
    tokens = sum(r.num_tokens for f in futures for r in f.result().results)  # type: ignore[union-attr]
    assert 0 < computed < tokens


def test_conversation_that_is_too_long_is_error_at_its_index(pool: RayExecutor) -> None:
    long = conversation("word " * 30_000)
    scored = pool.submit([long, conversation("short"), long], "error").result(LOSS_PATIENCE_S)
    first, second, third = scored.results
    assert isinstance(second, Reward)
    assert isinstance(first, ScoreError)
    assert isinstance(third, ScoreError)
    assert {first.code, third.code} == {"conversation_too_long"}


def test_killed_actor_loses_no_results(pool: RayExecutor, scorer: RewardScorer) -> None:
    calls = create_calls("killed", 20)
    futures = submit_all(pool, calls)
    wait(futures, return_when=FIRST_COMPLETED)
    before = actors()
    assert kill(before[0])
    assert not all(future.done() for future in futures)
    assert_right(futures, calls, scorer)
    until(lambda: len({p.pid for p in actors()} - {before[0].pid}) == 2, "the actor is replaced")


def test_only_deadly_conversation_is_quarantined(pool: RayExecutor, scorer: RewardScorer) -> None:
    around = create_calls("around", 6)
    with_deadly = [conversation("before"), conversation(DEADLY), conversation("after")]
    futures = submit_all(pool, around[:3])
    deadly = pool.submit(with_deadly, "error")
    futures += submit_all(pool, around[3:])
    before, killer, after = deadly.result(LOSS_PATIENCE_S).results
    assert isinstance(before, Reward)
    assert isinstance(killer, ScoreError)
    assert isinstance(after, Reward)
    assert killer.code == "lost_replicas"
    assert "2 actors were lost" in killer.message
    expected = scorer.score([with_deadly[0], with_deadly[2]])
    assert [before.reward, after.reward] == pytest.approx(
        [r.reward for r in expected if isinstance(r, Reward)], abs=TOLERANCE
    )
    assert_right(futures, around, scorer)


def test_actor_with_hanging_device_is_replaced(
    pool: RayExecutor, scorer: RewardScorer, tmp_path: Path
) -> None:
    calls = create_calls("hangs", 4)
    file = tmp_path / "has-hung"
    calls[1] = [*calls[1], conversation(f"{HANGS_WITHOUT}{file}")]
    before = {process.pid for process in actors()}
    futures = submit_all(pool, calls)
    assert_right(futures, calls, scorer)
    assert file.exists()
    until(lambda: len({p.pid for p in actors()} - before) == 1, "one actor is replaced")
    until(lambda: len(actors()) == 2, "the hanging actor is ended")


def test_silent_actor_is_replaced(
    pool: RayExecutor, scorer: RewardScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_actor_pool, "_MAX_MISSED_POLLS", 2)
    until(lambda: pool.capacity == 4, "both actors are up")
    calls = create_calls("silent", 20)
    futures = submit_all(pool, calls)
    wait(futures, return_when=FIRST_COMPLETED)
    silent = actors()[0]
    os.kill(silent.pid, signal.SIGSTOP)
    try:
        assert not all(future.done() for future in futures)
        assert_right(futures, calls, scorer)
        until(lambda: silent.pid not in {p.pid for p in actors()}, "the silent actor is ended")
    finally:
        kill(silent)


def test_pool_grows_and_shrinks_with_cluster(
    cluster: Any, pool: RayExecutor, scorer: RewardScorer
) -> None:
    until(lambda: pool.capacity == 4, "both actors are up")
    added = cluster.add_node(**NODE)
    calls = create_calls("grows", 4)
    assert_right(submit_all(pool, calls), calls, scorer)
    until(lambda: pool.capacity == 6, "an actor on the new node")
    calls = create_calls("shrinks", 24)
    futures = submit_all(pool, calls)
    wait(futures, return_when=FIRST_COMPLETED)
    cluster.remove_node(added, allow_graceful=False)
    assert not all(future.done() for future in futures)
    assert_right(futures, calls, scorer)
    until(lambda: pool.capacity == 4, "the two other actors remain")
