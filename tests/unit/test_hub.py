"""Hub ids: revisions are pinned and reported, from a cache in the layout of the hub's client."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rm_core import ModelConfig, ModelLoadError, RewardScorer, load_encoder
from serve.config.model_settings import ModelSettings
from serve.worker.backends import pin_revision

NAME = "Skywork/Skywork-Reward-V2-Qwen3-0.6B"
MAIN, OLD = "a" * 40, "b" * 40


@pytest.fixture
def cache(
    tmp_path: Path, checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A cache with two revisions of one repository; the network is off."""
    folder = tmp_path / f"models--{NAME.replace('/', '--')}"
    for commit, name in ((MAIN, "qwen3"), (OLD, "qwen3-pad-is-eos")):
        shutil.copytree(checkpoint_of(name), folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(MAIN)
    (folder / "refs" / "v1").write_text(OLD)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    return folder


@pytest.mark.parametrize(
    ("revision", "commit"), [(None, MAIN), ("main", MAIN), ("v1", OLD), (OLD, OLD)]
)
def test_fingerprint_reports_commit(cache: Path, revision: str | None, commit: str) -> None:
    scorer = RewardScorer.load(ModelConfig(NAME, revision=revision, device="cpu"))
    assert scorer.fingerprint.revision == commit
    assert scorer.describe().catalogue_id == NAME
    assert scorer.describe().max_length == 2048  # fewer positions than the trained length


def test_revisions_give_different_rewards(cache: Path) -> None:
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    rewards = [
        RewardScorer.load(ModelConfig(NAME, revision=r, device="cpu")).score([conversation])[0]
        for r in ("main", "v1")
    ]
    assert rewards[0] != rewards[1]


@pytest.mark.parametrize(("revision", "commit"), [(None, MAIN), ("v1", OLD)])
def test_pin_revision_resolves_commit(cache: Path, revision: str | None, commit: str) -> None:
    settings = ModelSettings(name=NAME, alias="rm", revision=revision)
    assert pin_revision(settings) == settings.model_copy(update={"revision": commit})
    demo = ModelSettings(name="demo", alias="demo")
    assert pin_revision(demo) == demo


def test_unknown_revision_is_refused(cache: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"at revision 'v9'.*check the name, the revision"):
        RewardScorer.load(ModelConfig(NAME, revision="v9"))


def test_unknown_repository_is_refused(cache: Path) -> None:
    with pytest.raises(ModelLoadError, match="could not be downloaded from the hub"):
        load_encoder(ModelConfig("nobody/nothing"))


def test_cache_folder_reports_its_commit(cache: Path) -> None:
    snapshot = cache / "snapshots" / OLD
    scorer = RewardScorer.load(ModelConfig(str(snapshot), device="cpu"))
    assert scorer.fingerprint.revision == OLD
    assert scorer.describe().catalogue_id == NAME
    with pytest.raises(ModelLoadError, match="is a local folder"):
        RewardScorer.load(ModelConfig(str(snapshot), revision=MAIN))
