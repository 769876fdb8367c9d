"""Jobs on a real Ray cluster of two local nodes, with losses of every kind.

All tests share one cluster, in the order of the file, because Ray and every replica take seconds to
start. How batches are sent again, isolated and spread is tested without Ray in
`tests/unit/test_dispatcher_crashes.py`.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import small_chunks
import torch
from job_runs import count_chunks, run_job, write_lines
from processes import Process, kill, processes_of
from vision import build_vision_model
from waiting import PATIENCE_S

from rm_core import Encoded, ModelConfig, ModelLoadError, Reward, RewardScorer, load_encoder
from rm_core.inputs.conversations import Messages
from rm_core.inputs.sample_image import write_png
from rm_core.packing import TokenIds
from serve.jobs.executors.local import LocalExecutor
from serve.jobs.executors.ray import RayExecutor

# Sums of floats differ with the number of threads: 1.2e-6 measured.
TOLERANCE = 1e-4
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
# The successor of a lost replica imports torch and loads the model, which takes minutes on a busy
# machine, and a conversation is quarantined only after two lost replicas.
LOSS_PATIENCE_S = 8 * PATIENCE_S
STUCK_AFTER_S = 30.0  # longer than a batch takes on a busy machine

pytestmark = [
    pytest.mark.timeout(2 * LOSS_PATIENCE_S),
    pytest.mark.filterwarnings("ignore"),  # of Ray Serve's import
]


def conversation(text: str, answer: str = "Paris.") -> Messages:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


DEADLY = conversation("the text that kills")
HANGING = conversation("the text on which a device hangs")


def create_crashing_replica(has_hung: Path) -> Any:
    """Return a replica class whose process dies, as by a segmentation fault, on `DEADLY`.

    Its device hangs on `HANGING`, at the first time only.

    Args:
        has_hung: file that is created at that time.
    """
    from serve.jobs.executors.ray_application import JobScorerReplica

    encoded = load_encoder(ModelConfig("demo")).encode_all([DEADLY, HANGING])
    deadly, hanging = [item.input_ids for item in encoded if isinstance(item, Encoded)]

    # A class in a function is sent to the workers by value; they cannot import this module.
    class CrashingReplica(JobScorerReplica):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._worker.watchdog.stuck_after_s = STUCK_AFTER_S
            scorer: Any = self._worker.scorer
            pack = scorer.pack

            def crash_or_pack(sequences: Sequence[TokenIds], *rest: Any) -> Any:
                if deadly in map(tuple, sequences):
                    os._exit(139)
                if hanging in map(tuple, sequences) and not has_hung.exists():
                    has_hung.touch()
                    scorer._forward = lambda *_: time.sleep(3600)
                return pack(sequences, *rest)

            scorer.pack = crash_or_pack

    return CrashingReplica


def create_refusing_replica() -> Any:
    """Return a replica class that refuses its checkpoint."""
    from serve.jobs.executors.ray_application import JobScorerReplica

    class RefusingReplica(JobScorerReplica):
        def __init__(self, *_: Any) -> None:
            raise ModelLoadError("the checkpoint is refused here")

    return RefusingReplica


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start two nodes with one CPU each, and a head without CPUs, and join them."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "token")
    patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    patch.setenv("RAY_agent_register_timeout_ms", "100000")  # on a machine with much else to do
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray._raylet import AuthenticationTokenLoader, Config
    from ray.cluster_utils import Cluster

    # An earlier import of Ray in this process has already read these variables.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    head = {**NODE, "num_cpus": 0, "include_dashboard": False}
    running = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        running.add_node(**NODE)
    ray.init(running.address, logging_level="ERROR", log_to_driver=False)
    try:
        yield running
    finally:
        ray.shutdown()
        running.shutdown()
        patch.undo()


@pytest.fixture(scope="module")
def scorer() -> RewardScorer:
    return RewardScorer.load(ModelConfig("demo"))


def create_calls(name: str, num_calls: int = 8, size: int = 48) -> list[list[Messages]]:
    return [
        [
            conversation(
                f"{name} {call}, what of {i}? " + "the capital of France " * 8, "Paris" * i
            )
            for i in range(1, size + 1)
        ]
        for call in range(num_calls)
    ]


def score_all(
    executor: RayExecutor,
    calls: list[list[Messages]],
    scorer: RewardScorer,
    disturb: Callable[[], None] = lambda: None,
) -> int:
    """Score calls, check that all results are right and in order; return the computed tokens.

    Args:
        executor: the executor.
        calls: the conversations of each call.
        scorer: scores the same conversations in this process.
        disturb: called after the first result.
    """
    futures = [executor.submit(call, "error") for call in calls]
    futures[0].result(LOSS_PATIENCE_S)
    disturb()
    for future, call in zip(futures, calls, strict=True):
        results = future.result(LOSS_PATIENCE_S).results
        for result, expected in zip(results, scorer.score(call), strict=True):
            if isinstance(expected, Reward):
                assert isinstance(result, Reward), result
                assert result.reward == pytest.approx(expected.reward, abs=TOLERANCE)
            else:
                assert result == expected
    return sum(future.result().num_computed_tokens for future in futures)


def until(is_true: Callable[[], object], condition: str) -> None:
    deadline = time.monotonic() + LOSS_PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, condition
        time.sleep(0.2)


def replicas() -> list[Process]:
    return [
        process
        for process in processes_of(os.getpid())
        if process.title.startswith("ray::ServeReplica:skyreward-job-")
    ]


@pytest.mark.parametrize("address", ["nowhere", "ray://", "127.0.0.1:1", "ray://127.0.0.1:1"])
def test_missing_cluster_is_reported_at_once(address: str) -> None:
    # Runs before a cluster exists, because a process that has joined one stays connected.
    executor = RayExecutor(ModelConfig("demo"), address)
    future = executor.submit([conversation("hi")], "error")
    with pytest.raises(ModelLoadError, match=r"no Ray cluster at .*`local`"):
        future.result(PATIENCE_S)
    executor.close()


def test_checkpoint_that_every_replica_refuses_fails_calls(cluster: Any) -> None:
    from ray import serve as ray_serve

    executor = RayExecutor(
        ModelConfig("demo"), cluster.address, 1, replica_class=create_refusing_replica()
    )
    try:
        for _ in range(2):
            future = executor.submit([conversation("hi")], "error")
            with pytest.raises(ModelLoadError, match=r"no replica of the job.*refused here"):
                future.result(LOSS_PATIENCE_S)
    finally:
        executor.close()
    assert not ray_serve.status().applications


def run_and_interrupt(command: list[str], output: Path, signal_number: int) -> tuple[int, str]:
    """Send a signal to a run after its next chunk; return its exit code and messages."""
    before = count_chunks(output)

    def has_next_chunk() -> bool:
        return process.poll() is not None or count_chunks(output) > before

    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: process.poll() is not None or replicas(), "a replica starts")
        until(has_next_chunk, "a chunk is scored")
        process.send_signal(signal_number)
        _, errors = process.communicate(timeout=LOSS_PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    return process.returncode, errors


def test_stopped_and_killed_job_removes_its_application_and_resumes(
    cluster: Any, tmp_path: Path
) -> None:
    """Another application of the same Ray Serve is not disturbed."""
    from ray import serve as ray_serve

    class Other:
        def __call__(self) -> int:
            return os.getpid()

    ray_serve.start(proxy_location="Disabled")
    deployment = ray_serve.deployment(Other).options(ray_actor_options={"num_cpus": 0})
    other: Any = ray_serve.run(deployment.bind(), name="other", route_prefix=None)
    pid_before = other.remote().result()

    rows = [
        {"id": number, "messages": conversation(f"{number}: " + "word " * 100)}
        for number in range(400)
    ]
    source = write_lines(tmp_path / "in.jsonl", rows)
    output = tmp_path / "out.jsonl"
    command = [
        *(sys.executable, small_chunks.__file__, "10", "score", str(source), "-o", str(output)),
        *("--ray", cluster.address, "--model", "demo", "--deterministic"),
    ]

    def list_jobs() -> list[str]:
        return [name for name in ray_serve.status().applications if name != "other"]

    for signal_number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        returncode, errors = run_and_interrupt(command, output, signal_number)
        assert returncode == code, errors
        until(lambda: not list_jobs(), "the application of the job is removed")
        until(lambda: not replicas(), "its replicas end")

    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LOSS_PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "resuming at row" in done.stderr
    until(lambda: not list_jobs(), "the application of the finished job is removed")
    assert other.remote().result() == pid_before
    ray_serve.delete("other")

    # A deterministic model gives the same rewards in this process, to the bit.
    expected = tmp_path / "expected.jsonl"
    num_threads = torch.get_num_threads()
    torch.set_num_threads(NODE["num_cpus"])
    try:
        local = LocalExecutor(ModelConfig("demo", deterministic=True))
        run_job(source, expected, local)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(num_threads)
    assert output.read_bytes() == expected.read_bytes()


def test_job_takes_rewards_of_a_local_job_from_the_cache(cluster: Any, tmp_path: Path) -> None:
    rows = [{"messages": conversation(f"{n}+{n}?", str(2 * n))} for n in range(8)]
    source, cache = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "rewards.sqlite"
    expected, output = tmp_path / "local.jsonl", tmp_path / "ray.jsonl"
    run_job(source, expected, LocalExecutor(ModelConfig("demo")), reward_cache=cache)  # type: ignore[arg-type]
    executor = RayExecutor(ModelConfig("demo"), cluster.address)
    summary = run_job(source, output, executor, reward_cache=cache)  # type: ignore[arg-type]
    assert (summary.num_reused_rewards, summary.num_computed_tokens) == (8, 0)
    assert output.read_bytes() == expected.read_bytes()


def test_executor_survives_losses_and_grows(
    cluster: Any, scorer: RewardScorer, tmp_path: Path
) -> None:
    import ray

    has_hung = tmp_path / "has-hung"
    executor = RayExecutor(
        ModelConfig("demo"), cluster.address, replica_class=create_crashing_replica(has_hung)
    )
    try:
        calls = create_calls("in order")
        long = conversation("word " * 30_000)  # has an error in its position
        calls[1].insert(7, long)
        num_computed = score_all(executor, calls, scorer)
        tokens = [r.num_tokens for c in calls for r in scorer.score(c) if isinstance(r, Reward)]
        assert 0 < num_computed < sum(tokens)
        until(lambda: executor.capacity == 4, "two replicas with two calls each")
        assert len(replicas()) == 2

        # A killed replica loses no result and is replaced.
        killed = replicas()[0]
        score_all(executor, create_calls("killed"), scorer, lambda: assert_killed(killed))
        until(lambda: len({p.pid for p in replicas()} - {killed.pid}) == 2, "it is replaced")

        # Only the conversation that crashes replicas gets an error.
        calls = create_calls("around", 4)
        deadly = executor.submit([conversation("before"), DEADLY, conversation("after")], "error")
        score_all(executor, calls, scorer)
        before, killer, after = deadly.result(LOSS_PATIENCE_S).results
        assert (getattr(killer, "code", killer)) == "lost_replicas"
        for result, text in ((before, "before"), (after, "after")):
            (expected,) = scorer.score([conversation(text)])
            assert isinstance(expected, Reward)
            assert isinstance(result, Reward)
            assert result.reward == pytest.approx(expected.reward, abs=TOLERANCE)

        # A replica whose device hangs is replaced.
        # The capacity may still be that from before the losses.
        until(lambda: executor.capacity == 4 and len(replicas()) == 2, "both replicas are up")
        pids = {process.pid for process in replicas()}
        calls = create_calls("hangs", 4)
        calls[1].append(HANGING)
        score_all(executor, calls, scorer)
        assert has_hung.exists()
        until(lambda: len(pids & {p.pid for p in replicas()}) == 1, "the hanging one is ended")

        # The number of replicas follows the cluster.
        until(lambda: executor.capacity == 4, "both replicas are up")
        added = cluster.add_node(**NODE)
        until(lambda: executor.capacity == 6, "a replica on the new node")
        calls = create_calls("shrinks", 24)
        score_all(executor, calls, scorer, lambda: cluster.remove_node(added, allow_graceful=False))
        until(lambda: executor.capacity == 4, "the two other replicas remain")
    finally:
        executor.close()
    until(lambda: not replicas(), "the replicas end with the job")
    # Only jobs used Serve, which therefore ends too.
    with pytest.raises(ValueError, match="SERVE_CONTROLLER_ACTOR"):
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")


def assert_killed(process: Process) -> None:
    assert kill(process)


def test_images_reach_replicas(cluster: Any, tmp_path: Path) -> None:
    model = ModelConfig(str(build_vision_model(tmp_path / "model")))
    images = [write_png(100, 60), write_png(57, 90)]
    calls = [
        [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": image},
                        {"type": "text", "text": "What?"},
                    ],
                },
                {"role": "assistant", "content": f"Answer {number} of {call}."},
            ]
            for number in range(6)
            for image in images
        ]
        for call in range(2)
    ]
    executor = RayExecutor(model, cluster.address, 1)
    try:
        assert executor.resolve_identity()["max_image_bytes"] == model.max_image_bytes
        score_all(executor, calls, RewardScorer.load(model))
    finally:
        executor.close()
