"""Fixtures shared by all tests. Ray is started once per run, by the service itself."""

from __future__ import annotations

import os

# Read when they are imported, below, and by every process that a test starts. The models are too
# small to gain from a second thread, and there is a worker of pytest for each core.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import gc

gc.disable()  # until everything is imported and collected, see below

import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from checkpoints import SPECS, PathOf, build_checkpoint
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings

from serve.cli.demo import find_free_port as find_free_port

ROOT = Path(__file__).resolve().parent.parent
# Published benchmark files, a folder for each; tests of those that are missing are skipped.
BENCHMARK_DATA = Path(os.environ.get("BENCHMARK_DATA", ROOT / "build" / "benchmark-data"))

# The same examples on every machine, and no deadlines, since test machines are small and shared.
settings.register_profile(
    "repository",
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    derandomize=True,
    database=None,
)
settings.register_profile("full", settings.get_profile("repository"), max_examples=400)
settings.load_profile("repository")  # `make test-slow` loads the other one


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--site", type=Path, help="documentation that is built; default: build it")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests that share a service in one process."""
    from scheduling import GroupScheduling

    if config.option.dist != "loadgroup":
        return None
    # In the order of `testpaths`, not by the number of tests.
    config.option.loadscopereorder = False
    return GroupScheduling(config, log)


def pytest_collection_finish() -> None:
    """Take what is imported from the garbage collector, whose walks took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """No setting of the person who runs the tests may reach them."""
    patch = pytest.MonkeyPatch()
    for name in os.environ:
        if name.startswith(("SKYREWARD_", "RAY_")):
            patch.delenv(name)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _local_host() -> Iterator[None]:
    """Test clients ask for this machine, not for `testserver`: a service without keys minds."""
    patch = pytest.MonkeyPatch()
    at_localhost = functools.partialmethod(TestClient.__init__, base_url="http://localhost")
    patch.setattr(TestClient, "__init__", at_localhost)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A replica sets the threads of its process, here that of all later tests.

    On busy cores threads wait for each other: a small model loads in 2.8 s instead of 0.2 s.
    """
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_loggers() -> Iterator[None]:
    """A service in this process sends its loggers to standard error, past pytest's handler."""
    yield
    for name in ("serve", "rm_core", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> PathOf:
    """Return the folder of a checkpoint of SPECS. Tests must not change it."""
    root = tmp_path_factory.mktemp("checkpoints")
    return functools.cache(lambda name: build_checkpoint(root / name, SPECS[name]))


@pytest.fixture(scope="session")
def service(checkpoint_of: PathOf) -> Iterator[str]:
    """Address of a real service on Ray with the demo model and one of each other family."""
    from serve.cli.demo import run_service

    options = ["--model", "demo"]
    for alias, spec in (("llama", "llama-v0.1"), ("gemma", "gemma2")):
        options += ["--model", f"{alias}={checkpoint_of(spec)}"]
    with run_service(*options) as url:
        yield url


@pytest.fixture
def http(service: str) -> Iterator[httpx.Client]:
    """A client of the running service."""
    with httpx.Client(base_url=service, timeout=300, trust_env=False) as client:
        yield client
