"""Where a job's rewards come from: a model in this process, or a running service."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from rm_core import ModelConfig, ModelLoadError, RewardScorer
from serve.clients.http import ScoringClient
from serve.jobs.jsonl import ScoreAll
from serve.model_settings import ModelSettings
from serve.settings import explain


def model_config(model: str, **chosen: Any) -> ModelConfig:
    """What the command line's model options mean; NAME@REVISION as in the settings.

    Args:
        model: as on the command line.
        chosen: other fields of `ModelConfig`.

    Raises:
        ModelLoadError: a bad value.
    """
    try:
        short = ModelSettings.model_validate(model)
    except ValidationError as error:
        raise ModelLoadError(explain(error)) from None
    return ModelConfig(name=short.name, revision=short.revision, known_as=short.alias, **chosen)


@contextlib.contextmanager
def local_scorer(**model: Any) -> Iterator[ScoreAll]:
    """A model loaded into this process; arguments as for `model_config`."""
    yield RewardScorer.load(model_config(**model)).score


@contextlib.contextmanager
def remote_scorer(url: str, model: str | None, **access: Any) -> Iterator[ScoreAll]:
    """A running service.

    Args:
        url: its address.
        model: which of its models; None if it serves one.
        access: more arguments of `ScoringClient`.
    """
    with ScoringClient(url, model, **access) as client:
        yield client.score
