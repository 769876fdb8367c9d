"""Shared scorers and encoders, and copies of checkpoints."""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rm_core import BatchConfig, ChatEncoder, ModelConfig, RewardScorer, load_encoder
from rm_core.inputs import tokenizer_check


@pytest.fixture(autouse=True)
def _brief_tokenizer_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare fastokens with tokenizers on a tenth of the texts.

    All of them take 0.5 s for each tokenizer.
    """
    build_texts = tokenizer_check.build_texts
    monkeypatch.setattr(
        tokenizer_check, "build_texts", lambda *args: itertools.islice(build_texts(*args), 64)
    )


@pytest.fixture(scope="session")
def scorer_of(checkpoint_of: Callable[[str], Path]) -> Callable[..., RewardScorer]:
    """Return a loaded scorer of a checkpoint of SPECS, on the CPU.

    It has no prefix cache: a test must not depend on what another one scored.
    """

    @functools.cache
    def load(name: str, dtype: str = "float32", attention: str = "auto") -> RewardScorer:
        path = str(checkpoint_of(name))
        return RewardScorer.load(
            ModelConfig(path, dtype=dtype, attention=attention, device="cpu"),  # type: ignore[arg-type]
            BatchConfig(prefix_cache_bytes=0),
        )

    return load


@pytest.fixture(scope="session")
def encoder_of(checkpoint_of: Callable[[str], Path]) -> Callable[[str], ChatEncoder]:
    """Return the encoder of a checkpoint of SPECS."""
    return functools.cache(lambda name: load_encoder(ModelConfig(str(checkpoint_of(name)))))


@pytest.fixture
def trace_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace what is compiled, and run the graphs as they are."""
    compile_ = torch.compile

    @functools.wraps(compile_)
    def trace(function: Any, **options: Any) -> Any:
        return compile_(function, **{**options, "backend": "eager"})

    monkeypatch.setattr(torch, "compile", trace)
    yield
    torch.compiler.reset()


@pytest.fixture
def copy_of(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Copy a checkpoint of SPECS, so that the test may change it."""

    def copy(name: str = "qwen3", folder: str = "checkpoint") -> Path:
        return Path(shutil.copytree(checkpoint_of(name), tmp_path / folder))

    return copy
