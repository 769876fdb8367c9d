"""Sleep, wake and reload of a worker's model, while batches come in."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SPECS, build_checkpoint, edit_config, edit_weights
from transformers import AutoConfig, AutoModelForSequenceClassification

from rm_core import ModelLoadError, RewardScorer
from rm_core.packing import TokenIds
from serve.config.model_settings import ModelSettings
from serve.errors import ReloadRefusedError, ReplicaBusyError
from serve.worker import lifecycle
from serve.worker.backends import build_stage_command, load_scorer
from serve.worker.commands import ModelCommand
from serve.worker.lifecycle import ManagedWorker

SPEC = SPECS["qwen3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three checkpoints that differ in their weights alone."""
    root = tmp_path_factory.mktemp("steps")
    return [build_checkpoint(root / f"step-{seed}", replace(SPEC, seed=seed)) for seed in range(3)]


@pytest.fixture
def settings(folders: list[Path]) -> ModelSettings:
    return ModelSettings.model_validate({"name": str(folders[0]), "alias": "rm"})


@pytest.fixture
def worker(settings: ModelSettings) -> Iterator[ManagedWorker]:
    worker = ManagedWorker(settings)
    yield worker
    worker.close()


def encode(worker: ManagedWorker) -> list[TokenIds]:
    assert worker.scorer is not None
    return [
        worker.scorer.encoder.encode(
            [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": f"It is {n}."}]
        ).input_ids
        for n in range(5)
    ]


async def score(worker: ManagedWorker, sequences: list[TokenIds]) -> tuple[Any, ...]:
    return (await worker.run_batch(sequences)).outputs


def stage(settings: ModelSettings, folder: Path) -> ModelCommand:
    return build_stage_command(settings, str(folder), None)


@pytest.mark.parametrize("level", [1, 2])
def test_rewards_after_waking_are_equal_to_the_bit(worker: ManagedWorker, level: int) -> None:
    async def run() -> None:
        sequences = encode(worker)
        before = await score(worker, sequences)
        for _ in range(3):
            await worker.control(ModelCommand("sleep", level))
            assert worker.sleep_level == level
            assert (worker.scorer is None) == (level == 2)
            with pytest.raises(ReplicaBusyError, match="asleep"):
                await score(worker, sequences)
            await worker.control(ModelCommand("wake"))
            assert worker.sleep_level == 0
            assert await score(worker, sequences) == before

    asyncio.run(run())


def test_sleep_gets_deeper_and_never_lighter(worker: ManagedWorker) -> None:
    async def run() -> None:
        await worker.control(ModelCommand("sleep", 1))
        await worker.control(ModelCommand("sleep", 2))
        assert worker.scorer is None
        await worker.control(ModelCommand("sleep", 1))
        assert worker.sleep_level == 2
        await worker.control(ModelCommand("wake"))
        await worker.control(ModelCommand("wake"))
        assert worker.scorer is not None

    asyncio.run(run())


def test_checkpoint_that_changed_during_sleep_is_refused(
    folders: list[Path], settings: ModelSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders[0], folder)
    worker = ManagedWorker(settings.model_copy(update={"name": str(folder)}))

    async def run() -> None:
        await worker.control(ModelCommand("sleep", 2))
        edit_weights(folder, lambda weights: weights["score.weight"].mul_(2))
        with pytest.raises(ModelLoadError, match="has changed while the model was asleep"):
            await worker.control(ModelCommand("wake"))
        shutil.rmtree(folder)
        with pytest.raises(ModelLoadError, match=r"does not exist.*put the files.*back"):
            await worker.control(ModelCommand("wake"))
        assert worker.sleep_level == 2
        shutil.copytree(folders[0], folder)
        await worker.control(ModelCommand("wake"))

    asyncio.run(run())
    worker.close()


@pytest.mark.parametrize("has_room", [True, False])
def test_reload_gives_the_rewards_of_the_new_weights(
    has_room: bool,
    worker: ManagedWorker,
    settings: ModelSettings,
    folders: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lifecycle, "_has_room", lambda _: has_room)
    expected = [
        RewardScorer.load(
            settings.model_copy(update={"name": str(folder)}).to_model_config()
        ).score_ids(encode(worker))
        for folder in folders
    ]

    async def run() -> None:
        sequences = encode(worker)
        for step in (1, 2, 0, 1):
            staged = await worker.control(stage(settings, folders[step]))
            assert staged.version == folders[step].name
            if has_room:
                assert worker.info.version != staged.version  # the old weights serve on
                await score(worker, sequences)
            await worker.control(ModelCommand("switch"))
            result = await worker.run_batch(sequences)
            assert result.outputs == pytest.approx(expected[step].outputs, abs=1e-5)
            assert result.fingerprint == worker.info.fingerprint == staged.fingerprint
            assert result.fingerprint.version == folders[step].name
            assert worker.scorer is not None
            assert worker.info.prefix_cache_tokens == worker.scorer.describe().prefix_cache_tokens

    asyncio.run(run())


def test_batches_during_reloads_are_of_one_version(
    worker: ManagedWorker, settings: ModelSettings, folders: list[Path]
) -> None:
    async def run() -> None:
        sequences = encode(worker)
        seen: dict[str | None, set[tuple[Any, ...]]] = {}
        is_over = False

        async def post() -> None:
            while not is_over:
                result = await worker.run_batch(sequences)
                rounded = tuple(round(output, 4) for output in result.outputs)  # type: ignore[arg-type]
                seen.setdefault(result.fingerprint.version, set()).add(rounded)

        tasks = [asyncio.create_task(post()) for _ in range(4)]
        for step in (1, 2, 1, 2):
            await worker.control(stage(settings, folders[step]))
            await worker.control(ModelCommand("switch"))
        is_over = True
        await asyncio.gather(*tasks)
        assert {"step-1", "step-2"} <= set(seen)
        assert all(len(rewards) == 1 for rewards in seen.values())
        assert len({*map(frozenset, seen.values())}) == len(seen)

    asyncio.run(run())


def damage(folder: Path, how: str) -> None:
    match how:
        case "nan":
            edit_weights(folder, lambda weights: weights["score.weight"].fill_(torch.nan))
        case "half written":
            file = folder / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-1000])
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "missing shard":
            (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
            index = '{"weight_map": {"score.weight": "model-00002-of-00002.safetensors"}}'
            (folder / "model.safetensors.index.json").write_text(index)
        case "other limit":
            edit_config(folder, max_position_embeddings=128)
        case "other template":
            file = folder / "chat_template.jinja"
            file.write_text(file.read_text() + " ")


@pytest.mark.parametrize("has_room", [True, False])
@pytest.mark.parametrize(
    "how", ["nan", "half written", "no weights", "missing shard", "other limit", "other template"]
)
def test_bad_checkpoint_is_refused_and_the_old_one_serves(
    how: str,
    has_room: bool,
    worker: ManagedWorker,
    settings: ModelSettings,
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lifecycle, "_has_room", lambda _: has_room)
    folder = tmp_path / "step-9"
    shutil.copytree(folders[1], folder)
    damage(folder, how)

    async def run() -> None:
        sequences = encode(worker)
        before = await score(worker, sequences)
        with pytest.raises(ReloadRefusedError):
            await worker.control(stage(settings, folder))
        assert await score(worker, sequences) == pytest.approx(before, abs=1e-5)
        with pytest.raises(ReloadRefusedError, match="no weights are staged"):
            await worker.control(ModelCommand("switch"))

    asyncio.run(run())


def test_another_architecture_is_refused(worker: ManagedWorker, settings: ModelSettings) -> None:
    with pytest.raises(ReloadRefusedError, match="of the new weights is"):
        asyncio.run(worker.control(build_stage_command(settings, "demo", None)))


def test_weights_of_another_size_are_refused(
    worker: ManagedWorker, settings: ModelSettings, folders: list[Path], tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(folders[0])
    config.num_key_value_heads *= 2
    other = Path(shutil.copytree(folders[0], tmp_path / "other"))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(other)

    async def run() -> None:
        sequences = encode(worker)
        before = await score(worker, sequences)
        with pytest.raises(ReloadRefusedError, match="num_key_value_heads of the new weights is 4"):
            await worker.control(stage(settings, other))
        assert await score(worker, sequences) == pytest.approx(
            before, abs=1e-5
        )  # of the prefix cache

    asyncio.run(run())


def test_discarded_weights_never_serve(
    worker: ManagedWorker, settings: ModelSettings, folders: list[Path]
) -> None:
    async def run() -> None:
        before = await score(worker, encode(worker))
        await worker.control(stage(settings, folders[1]))
        await worker.control(ModelCommand("discard"))
        assert await score(worker, encode(worker)) == pytest.approx(before, abs=1e-5)
        assert worker.info.version is None

    asyncio.run(run())


def test_missing_folder_is_refused_by_name(settings: ModelSettings, tmp_path: Path) -> None:
    with pytest.raises(ReloadRefusedError, match="step-7"):
        build_stage_command(settings, str(tmp_path / "step-7"), None)


def test_sleep_of_a_model_that_is_being_replaced_discards_the_new_weights(
    worker: ManagedWorker, settings: ModelSettings, folders: list[Path]
) -> None:
    async def run() -> None:
        await worker.control(stage(settings, folders[1]))
        await worker.control(ModelCommand("sleep"))
        with pytest.raises(ReloadRefusedError, match="asleep"):
            await worker.control(stage(settings, folders[1]))
        await worker.control(ModelCommand("wake"))
        assert worker.info.version is None

    asyncio.run(run())


def test_loading_runs_beside_batches(settings: ModelSettings, folders: list[Path]) -> None:
    """A load that takes its time does not keep batches from the device."""
    started, finish = asyncio.Event(), asyncio.Event()
    loop: list[asyncio.AbstractEventLoop] = []

    def load(changed: ModelSettings) -> RewardScorer:
        if loop:
            asyncio.run_coroutine_threadsafe(_set(started), loop[0]).result()
            asyncio.run_coroutine_threadsafe(finish.wait(), loop[0]).result()
        return load_scorer(changed)

    async def run() -> None:
        worker = ManagedWorker(settings, load)
        loop.append(asyncio.get_running_loop())
        staging = asyncio.create_task(worker.control(stage(settings, folders[1])))
        await started.wait()
        await score(worker, encode(worker))
        finish.set()
        assert (await staging).version == "step-1"
        worker.close()

    asyncio.run(run())


async def _set(event: asyncio.Event) -> None:
    event.set()
