"""Fixtures shared by all tests. Ray is started once per run, by the service itself."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported, below

import functools
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from checkpoints import SPECS, build_checkpoint
from fastapi.testclient import TestClient

from serve.cli.demo import find_free_port as find_free_port

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


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


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one checkpoint per entry of `checkpoints.SPECS`, under its name."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, spec in SPECS.items():
        build_checkpoint(folder / name, spec)
    return folder


@pytest.fixture(scope="session")
def service(checkpoint_folder: Path) -> Iterator[str]:
    """Address of a real service on Ray with the demo model and one of each other family."""
    from serve.cli.demo import run_service

    options = ["--model", "demo"]
    for alias, spec in (("llama", "llama-v0.1"), ("gemma", "gemma2")):
        options += ["--model", f"{alias}={checkpoint_folder / spec}"]
    with run_service(*options) as url:
        yield url


@pytest.fixture
def http(service: str) -> Iterator[httpx.Client]:
    """A client of the running service."""
    with httpx.Client(base_url=service, timeout=300, trust_env=False) as client:
        yield client
