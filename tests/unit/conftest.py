"""Shared checkpoints, scorers and encoders, and the hypothesis profile."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import SPECS, build_checkpoint
from hypothesis import HealthCheck, settings

from rm_core import ChatEncoder, ModelConfig, RewardScorer, load_encoder

# The same examples on every machine, and no deadlines, since test machines are small and shared.
settings.register_profile(
    "repository",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    database=None,
)
settings.load_profile("repository")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are too small to gain from a second thread
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a checkpoint of SPECS. Tests must not change it."""
    root = tmp_path_factory.mktemp("checkpoints")
    return functools.cache(lambda name: build_checkpoint(root / name, SPECS[name]))


@pytest.fixture(scope="session")
def scorer_of(checkpoint_of: Callable[[str], Path]) -> Callable[..., RewardScorer]:
    """Return a loaded scorer of a checkpoint of SPECS, on the CPU."""

    @functools.cache
    def load(name: str, dtype: str = "float32", attention: str = "auto") -> RewardScorer:
        path = str(checkpoint_of(name))
        return RewardScorer.load(
            ModelConfig(path, dtype=dtype, attention=attention, device="cpu")  # type: ignore[arg-type]
        )

    return load


@pytest.fixture(scope="session")
def encoder_of(checkpoint_of: Callable[[str], Path]) -> Callable[[str], ChatEncoder]:
    """Return the encoder of a checkpoint of SPECS."""
    return functools.cache(lambda name: load_encoder(ModelConfig(str(checkpoint_of(name)))))


@pytest.fixture
def copy_of(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Copy a checkpoint of SPECS, so that the test may change it."""

    def copy(name: str = "qwen3", folder: str = "checkpoint") -> Path:
        return Path(shutil.copytree(checkpoint_of(name), tmp_path / folder))

    return copy
