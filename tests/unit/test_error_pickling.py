"""Every error of the project keeps its fields between processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from rm_core import OverloadedError, RewardError, ScoreError
from serve.client.errors import ModelChangedError, ScoringFailedError, ServiceError
from serve.errors import ReplicaLostError, StorageError

FIELDS: dict[type[RewardError], dict[str, Any]] = {
    ModelChangedError: {"expected": {"revision": "a"}, "found": {"revision": "b"}},
    OverloadedError: {"retry_after_s": 2.5},
    ReplicaLostError: {"replica": "one", "reason": "replica_unhealthy"},
    ScoringFailedError: {"results": [1.5, ScoreError("code", "why")]},
    ServiceError: {"retryable": True, "status": 503},
    StorageError: {"is_temporary": True},
}


def walk(cls: type[RewardError]) -> Iterator[type[RewardError]]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from walk(subclass)


CLASSES = [cls for cls in walk(RewardError) if cls.__module__.startswith(("rm_core.", "serve."))]


def create_error(cls: type[RewardError]) -> RewardError:
    fields = next((FIELDS[base] for base in cls.__mro__ if base in FIELDS), {})
    return cls("what came; what to do", **fields)


def raise_error(cls: type[RewardError]) -> None:
    raise create_error(cls)


def test_classes_with_fields_are_listed() -> None:
    own = {cls for cls in CLASSES if "__init__" in vars(cls) and cls is not RewardError}
    assert own == FIELDS.keys()


@pytest.mark.parametrize("cls", CLASSES)
def test_error_keeps_fields_when_pickled(cls: type[RewardError]) -> None:
    error = create_error(cls)
    for restored in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(restored) is cls
        assert vars(restored) == vars(error)
        assert str(restored) == restored.detail == "what came; what to do"


@pytest.mark.parametrize("cls", CLASSES)
def test_error_keeps_fields_through_ray(cls: type[RewardError]) -> None:
    """Ray raises an object of a class of its own, derived from the class of the error."""
    error = create_error(cls)
    failure = RayTaskError("run_batch", "Traceback ...", error, "ray::worker", 1, "127.0.0.1")
    raised = pickle.loads(pickle.dumps(failure)).as_instanceof_cause()
    assert isinstance(raised, cls)
    for name, value in vars(error).items():
        assert getattr(raised, name) == value


def test_error_keeps_fields_through_multiprocessing() -> None:
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=context) as pool,
        pytest.raises(ReplicaLostError) as caught,
    ):
        pool.submit(raise_error, ReplicaLostError).result()
    assert vars(caught.value) == vars(create_error(ReplicaLostError))
