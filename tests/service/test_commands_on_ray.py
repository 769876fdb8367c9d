"""Sleep, wake and reload on Ray, with two replicas and two gateways, while clients score."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SPECS, build_checkpoint, edit_weights
from processes import Process, kill, processes_of
from waiting import PATIENCE_S

from rm_core import ModelConfig, Reward, RewardScorer
from serve.config.settings import Settings
from serve.errors import ModelAsleepError, ReloadRefusedError
from serve.scoring.served_model import ScoreResult, ServedModel
from serve.scoring.tokenization import RequestOptions
from serve.worker.backends import RayBackend

# A replica that is started again imports torch and loads the model.
LOSS_PATIENCE_S = 4 * PATIENCE_S
NUM_CLIENTS = 8

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(2 * LOSS_PATIENCE_S),
    pytest.mark.filterwarnings("ignore"),  # of Ray Serve's import
]


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": "Paris."}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints that differ in their weights alone."""
    root = tmp_path_factory.mktemp("steps")
    spec = SPECS["qwen3"]
    return [build_checkpoint(root / f"step-{seed}", replace(spec, seed=seed)) for seed in range(2)]


@pytest.fixture(scope="module")
def rewards_of(folders: list[Path]) -> dict[str, Callable[[str], float]]:
    """Reward of a text by each checkpoint alone, by the version that its fingerprint names."""

    def build(folder: Path) -> Callable[[str], float]:
        scorer = RewardScorer.load(ModelConfig(str(folder)))

        def score(text: str) -> float:
            (result,) = scorer.score([conversation(text)])
            assert isinstance(result, Reward)
            return result.reward

        return score

    return {folder.name: build(folder) for folder in folders}


@pytest.fixture(scope="module")
def application(folders: list[Path]) -> Iterator[Any]:
    """The application of `serve.app.build` on a private cluster; yields its settings."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "token")
    patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve as ray_serve
    from ray._raylet import AuthenticationTokenLoader, Config
    from ray.serve.schema import LoggingConfig

    # An earlier import of Ray in this process has already read these variables.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    settings = Settings.load(
        models=[
            {
                "name": str(folders[0]),
                "alias": "rm",
                "version": folders[0].name,
                "num_replicas": 2,
                "device": "cpu",
                "cache_bytes": 0,
            }
        ],
        num_gateways=2,
        log_level="WARNING",
    )
    from serve.app import APP_NAME, build

    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        logging_level="ERROR",
        log_to_driver=False,
    )
    try:
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        ray_serve.start(proxy_location="Disabled", logging_config=quiet)
        ray_serve.run_many([ray_serve.RunTarget(build(settings), APP_NAME, None, quiet)])
        yield settings
    finally:
        ray_serve.shutdown()
        ray.shutdown()
        patch.undo()


@contextlib.asynccontextmanager
async def gateways(settings: Settings, **changes: Any) -> AsyncIterator[list[ServedModel]]:
    """Two gateways in this process, with the queue and the backend of those on Ray."""
    from ray import serve as ray_serve

    from serve.app import APP_NAME
    from serve.deployments.gateway import get_deployment_name

    model = settings.models[0].model_copy(update=changes)
    scorers = ray_serve.get_deployment_handle(get_deployment_name(model.alias), APP_NAME)
    control = ray_serve.get_deployment_handle("Control", APP_NAME)
    models = [ServedModel(model, RayBackend(model.alias, scorers, control)) for _ in range(2)]
    watchers = [asyncio.create_task(served.watch()) for served in models]
    try:
        for served in models:
            await wait_for(lambda served=served: served.state in ("ready", "asleep"))
        yield models
    finally:
        for watcher in watchers:
            watcher.cancel()


async def wait_for(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LOSS_PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.05)


async def score(served: ServedModel, text: str, client: int = 0) -> ScoreResult:
    return await served.score([conversation(text)], RequestOptions(f"client {client}"))


async def find_version(served: ServedModel) -> set[str | None]:
    """Versions that answer, of several requests, so that every replica has one."""
    results = await asyncio.gather(*(score(served, f"which {n}") for n in range(16)))
    return {result.fingerprint.version for result in results}


def get_rewards(answer: ScoreResult) -> list[float]:
    return [result.reward for result in answer.results if isinstance(result, Reward)]


def find_replicas(deployment: str = "Scorer-rm") -> list[Process]:
    """Replicas of this module's application, also those that start."""
    ours = processes_of(os.getpid())
    # The service of other tests has a process for its commands too.
    others = {
        process.pid
        for service in ours
        if "serve.cli.main" in service.title
        for process in processes_of(service.pid)
    }
    mark = f"ServeReplica:skyreward:{deployment}"
    return [process for process in ours if mark in process.title and process.pid not in others]


class Clients:
    """Clients that score without a pause and never send a request again."""

    def __init__(self, models: list[ServedModel]) -> None:
        self.results: list[tuple[list[str], ScoreResult]] = []
        self._tasks = [
            asyncio.create_task(self._run(models[number % len(models)], number))
            for number in range(NUM_CLIENTS)
        ]

    async def _run(self, served: ServedModel, number: int) -> None:
        for i in itertools.count():
            texts = [f"{number}, {i}, {j}: what?" + " why?" * (j % 7) for j in range(1 + i % 9)]
            request = [conversation(text) for text in texts]
            self.results.append(
                (texts, await served.score(request, RequestOptions(f"client {number}")))
            )

    async def have_answers(self, num_answers: int) -> None:
        """Wait until so many more requests are answered."""
        wanted = len(self.results) + num_answers
        await wait_for(
            lambda: len(self.results) >= wanted or any(task.done() for task in self._tasks)
        )

    async def stop(self) -> None:
        """Stop them.

        Raises:
            RewardError: a request failed.
        """
        for task in self._tasks:
            if not task.done():
                task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


def assert_rewards_of_one_version(
    clients: Clients, rewards_of: dict[str, Callable[[str], float]]
) -> set[str]:
    versions = set()
    for texts, answer in clients.results[:: max(1, len(clients.results) // 200)]:
        version = answer.fingerprint.version
        assert version is not None
        versions.add(version)
        assert get_rewards(answer) == pytest.approx(
            [rewards_of[version](text) for text in texts], abs=1e-4
        )
    return versions


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def awaited() -> None:
        await test()

    asyncio.run(awaited())


def test_no_request_fails_while_either_gateway_reloads(
    application: Settings, folders: list[Path], rewards_of: dict[str, Callable[[str], float]]
) -> None:
    async def test() -> None:
        async with gateways(application) as models:
            clients = Clients(models)
            for step in range(1, 9):
                folder = folders[step % 2]
                info = await models[step // 2 % 2].reload(str(folder))
                assert info.version == folder.name
                await clients.have_answers(2 * NUM_CLIENTS)
            # Commands of both gateways at one time: one after the other.
            await asyncio.gather(*(m.reload(str(f)) for m, f in zip(models, folders, strict=True)))
            await clients.have_answers(NUM_CLIENTS)
            await clients.stop()
            assert assert_rewards_of_one_version(clients, rewards_of) == {"step-0", "step-1"}
            (version,) = await find_version(models[0])
            assert await find_version(models[1]) == {version}
            for served in models:  # a gateway learns of the reload that another one commanded
                await wait_for(lambda s=served: s.model_info and s.model_info.version == version)

    run(test)


def test_replica_killed_during_and_after_reload_comes_back_with_serving_version(
    application: Settings, folders: list[Path], rewards_of: dict[str, Callable[[str], float]]
) -> None:
    async def test() -> None:
        async with gateways(application) as models:
            await models[0].reload(str(folders[0]))
            clients = Clients(models)
            victim, other = find_replicas()
            reloading = asyncio.create_task(models[1].reload(str(folders[1])))
            assert kill(victim)
            assert (await reloading).version == "step-1"
            await wait_for(lambda: len({p.pid for p in find_replicas()} - {victim.pid}) == 2)
            assert kill(other)
            await wait_for(lambda: models[0]._backend.num_replicas < 2)
            await wait_for(lambda: models[0]._backend.num_replicas == 2)
            await clients.have_answers(NUM_CLIENTS)
            await clients.stop()
            assert_rewards_of_one_version(clients, rewards_of)
            assert not {p.pid for p in find_replicas()} & {victim.pid, other.pid}
            assert await find_version(models[0]) == {"step-1"}

    run(test)


@pytest.mark.parametrize("when_asleep", ["refuse", "wait"])
def test_both_replicas_sleep_and_wake(application: Settings, when_asleep: str) -> None:
    async def test() -> None:
        async with gateways(application, when_asleep=when_asleep) as models:
            before = await score(models[0], "the capital of France?")
            for level in (1, 2):
                await models[0].sleep(level)
                await wait_for(lambda: models[1].state == "asleep")
                waiting = [asyncio.create_task(score(m, f"{level}?")) for m in models]
                if when_asleep == "refuse":
                    for task in waiting:
                        with pytest.raises(ModelAsleepError, match="is asleep"):
                            await task
                else:
                    assert not (await asyncio.wait(waiting, timeout=2.0))[0]
                await models[1].wake()
                if when_asleep == "wait":
                    await asyncio.gather(*waiting)
                await wait_for(lambda: models[0].state == "ready")
                after = await score(models[0], "the capital of France?")
                # Equal to the bit only in the same batch with the same cached tokens; see
                # tests/unit/test_lifecycle.py.
                assert get_rewards(after) == pytest.approx(get_rewards(before), abs=1e-4)
                assert after.fingerprint == before.fingerprint

    run(test)


def test_replica_killed_while_the_model_sleeps_comes_back_asleep(application: Settings) -> None:
    async def test() -> None:
        async with gateways(application) as models:
            (version,) = await find_version(models[0])
            await models[0].sleep(1)
            victims = find_replicas()
            assert all(map(kill, victims))
            await wait_for(lambda: models[0]._backend.num_replicas == 0)
            await wait_for(lambda: models[0]._backend.num_replicas == 2)
            assert models[1].state == "asleep"
            with pytest.raises(ModelAsleepError):
                await score(models[1], "asleep?")
            await models[1].wake()
            await wait_for(lambda: models[0].state == "ready")
            assert await find_version(models[0]) == {version}

    run(test)


def test_lost_control_process_keeps_the_version(application: Settings, folders: list[Path]) -> None:
    async def test() -> None:
        async with gateways(application) as models:
            await models[0].reload(str(folders[1]))
            (control,) = find_replicas("Control")
            assert kill(control)
            assert (await models[1].reload(str(folders[0]))).version == "step-0"
            await models[0].reload(str(folders[1]))
            assert await find_version(models[1]) == {"step-1"}

    run(test)


@pytest.mark.parametrize("damage", ["NaN", "missing shard", "half-written"])
def test_refused_checkpoint_leaves_both_replicas_on_the_old_version(
    application: Settings, folders: list[Path], tmp_path: Path, damage: str
) -> None:
    async def test() -> None:
        folder = build_checkpoint(tmp_path / "bad", replace(SPECS["qwen3"], seed=7))
        file = folder / "model.safetensors"
        if damage == "NaN":
            edit_weights(folder, lambda tensors: tensors["score.weight"].fill_(float("nan")))
        elif damage == "missing shard":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        async with gateways(application) as models:
            await models[0].reload(str(folders[1]))
            for served in models:
                with pytest.raises(ReloadRefusedError):
                    await served.reload(str(folder))
                assert await find_version(served) == {"step-1"}
            await models[1].reload(str(folders[0]))

    run(test)
