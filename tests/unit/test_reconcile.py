"""One replica that follows targets, with real models."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import SPECS, build_checkpoint, edit_weights

from rm_core import ModelLoadError
from serve.config.model_settings import ModelSettings
from serve.errors import ReloadRefusedError, ReplicaBusyError
from serve.worker.commands import TargetState, Weights
from serve.worker.lifecycle import ManagedWorker
from serve.worker.reconcile import Reconciler

START = TargetState()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints that differ in their weights alone."""
    root = tmp_path_factory.mktemp("steps")
    spec = SPECS["qwen3"]
    return [build_checkpoint(root / f"step-{seed}", replace(spec, seed=seed)) for seed in range(2)]


@pytest.fixture
def reconciler(folders: list[Path]) -> Iterator[Reconciler]:
    settings = ModelSettings.model_validate({"name": str(folders[0]), "alias": "rm"})
    reconciler = Reconciler(settings, ManagedWorker)
    yield reconciler
    if reconciler.worker is not None:
        reconciler.worker.close()


def worker_of(reconciler: Reconciler) -> ManagedWorker:
    assert reconciler.worker is not None
    return reconciler.worker


def weights_of(folder: Path) -> Weights:
    return Weights(str(folder), None, folder.name)


def probe(reconciler: Reconciler) -> float:
    worker = worker_of(reconciler)
    assert worker.scorer is not None
    return worker.scorer.probe().reward


@pytest.mark.parametrize("staged_first", [True, False])
def test_weights_are_those_of_the_target(
    reconciler: Reconciler, folders: list[Path], staged_first: bool
) -> None:
    """Also where a replica was not there when they were staged, and sleeps."""
    weights = weights_of(folders[1])

    async def run() -> None:
        assert reconciler.start(START) == START
        before = probe(reconciler)
        if staged_first:
            assert await reconciler.reach(TargetState(1, staged=weights)) is None
            assert reconciler.staged_info
            assert reconciler.staged_info.version == "step-1"
            assert probe(reconciler) == before
        else:
            assert await reconciler.reach(TargetState(1, sleep_level=2)) is None
        assert await reconciler.reach(TargetState(2, weights=weights)) is None
        assert worker_of(reconciler).info.version == "step-1"
        assert probe(reconciler) != before
        assert await reconciler.reach(TargetState(3)) is None
        assert worker_of(reconciler).info.version is None
        assert probe(reconciler) == before

    asyncio.run(run())


def test_replica_that_starts_while_the_model_sleeps_loads_when_it_wakes(
    reconciler: Reconciler, folders: list[Path]
) -> None:
    async def run() -> None:
        reconciler.start(TargetState(1, sleep_level=1))
        assert reconciler.worker is None
        assert await reconciler.reach(TargetState(2, sleep_level=2)) is None
        assert reconciler.worker is None
        target = TargetState(3, weights=weights_of(folders[1]))
        assert await reconciler.reach(target) is None
        assert worker_of(reconciler).info.version == "step-1"

    asyncio.run(run())


def test_weights_that_are_refused_change_nothing(
    reconciler: Reconciler, folders: list[Path], tmp_path: Path
) -> None:
    async def run() -> None:
        reconciler.start(START)
        before = probe(reconciler)
        error = await reconciler.reach(TargetState(1, staged=weights_of(tmp_path)))
        assert isinstance(error, ReloadRefusedError)
        assert await reconciler.reach(TargetState(2)) is None
        worker_of(reconciler).check_health()
        assert probe(reconciler) == before
        good = weights_of(folders[1])
        assert await reconciler.reach(TargetState(3, staged=good)) is None
        assert await reconciler.reach(TargetState(4, weights=good)) is None

    asyncio.run(run())


def test_replica_that_cannot_have_the_weights_of_the_others_refuses_batches(
    reconciler: Reconciler, tmp_path: Path
) -> None:
    async def run() -> None:
        reconciler.start(START)
        assert await reconciler.reach(TargetState(1, weights=weights_of(tmp_path))) is not None
        with pytest.raises(ReplicaBusyError, match="cannot follow the other replicas"):
            await worker_of(reconciler).run_batch([(1, 2)])

    asyncio.run(run())


def test_files_that_changed_since_the_others_loaded_them_are_refused(
    reconciler: Reconciler, folders: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "step-1"
    shutil.copytree(folders[1], folder)
    weights = weights_of(folder)
    reconciler.start(TargetState(1, weights=weights))
    target = TargetState(2, weights=weights, identity=worker_of(reconciler).info.revision)
    reconciler.start(target)
    edit_weights(folder, lambda tensors: tensors["score.weight"].mul_(2))
    with pytest.raises(ModelLoadError, match="has changed since it was loaded"):
        reconciler.start(target)
