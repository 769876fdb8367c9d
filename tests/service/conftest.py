"""Who runs which tests, a browser, and the service whose playground it opens; each started once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Visitor
from checkpoints import SPECS, build_checkpoint
from peer_service import Served
from playground import LINES, READY

from rm_core import seeds_dir
from serve.cli.demo import run_service
from serve.client.integrations import base

# Files whose tests start Ray, as those do that use its service. They are for one process: Ray is
# started once, and `serve run` would join the cluster of another one. All others, whose services
# are single processes, may run beside each other.
ON_RAY = ("test_demo", "test_ray_executor", "test_serve_run", "test_startup_on_ray")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need Ray."""
    for item in items:
        if item.path.stem in ON_RAY or "service" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def playground_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of the demo model, and of the same for short conversations alone."""
    config = tmp_path_factory.mktemp("config") / "models.yaml"
    config.write_text("models: [{name: demo}, {name: demo, alias: short, max_length: 64}]")
    with run_service("--local", "--config", str(config)) as address:
        yield address


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    with Visitor(tmp_path_factory.mktemp("browser")) as visitor:
        visitor.allow_copying()
        yield visitor


@pytest.fixture
def page(browser: Visitor, playground_url: str) -> Iterator[Visitor]:
    """The page, just opened; nothing on it may have complained, nor asked another host."""
    browser.visit(playground_url)
    browser.wait(READY)
    yield browser
    # What is not waited for any more is given up.
    assert {*browser.complaints} <= {"not loaded: net::ERR_ABORTED"}
    hosts = {re.sub(r"^(http://[^/]+|data|blob).*", r"\1", address) for address in browser.asked}
    assert hosts <= {playground_url, "data", "blob"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mixed.jsonl").write_text("\n".join(LINES) + "\n")
    return tmp_path / "mixed.jsonl"


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = build_checkpoint(tmp_path_factory.mktemp("llama"), SPECS["llama-v0.2"])
    with run_service("--local", "--model", "demo", "--model", f"llama={folder}") as url:
        yield Served(url, {"demo": seeds_dir() / "demo", "llama": folder})


@pytest.fixture
def chosen(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Settings of our reward functions."""
    monkeypatch.setenv("SKYREWARD_CLIENT_URLS", served.url)
    monkeypatch.setenv("SKYREWARD_CLIENT_MODEL", "llama")
    base._build_reward_client.cache_clear()
    yield monkeypatch
    base.get_reward_client().client.close()
    base._build_reward_client.cache_clear()
