"""The way of a request through the service stays short, and the documentation names its files."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from conftest import ROOT
from middleware_harness import live
from waiting import until

from serve.api.app import create_app
from serve.config.settings import Settings
from serve.scoring.service import ScoringService
from serve.telemetry.logging import configure_logging
from serve.worker.lifecycle import ManagedWorker

MAX_FILES = 20
PAGE = ROOT / "docs" / "contributing" / "architecture.md"


class FileRecorder:
    """Records the files of `serve` of which functions run, on every thread that starts later.

    Attributes:
        files: paths of the files, from the root of the project.
        is_recording: whether a function that runs now counts.
    """

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.is_recording = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        threading.setprofile(self._on_event)
        try:
            yield
        finally:
            threading.setprofile(None)

    def _on_event(self, frame: FrameType, event: str, _: object) -> None:
        if self.is_recording and event == "call" and frame.f_code.co_name != "<module>":
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT / "serve"):
                self.files.add(str(path.relative_to(ROOT)))


@pytest.fixture
def _service_logging() -> None:
    """Log as `skyreward serve` does."""
    configure_logging("INFO")


def list_documented_files() -> set[str]:
    """Return the files that the page names in its section on a request."""
    section = PAGE.read_text(encoding="utf-8").split("## A request's life")[1].split("\n## ")[0]
    return set(re.findall(r"`(serve/[\w/]+\.py)`", section))


@pytest.mark.usefixtures("_service_logging")
def test_request_runs_few_files_which_architecture_page_names() -> None:
    recorder = FileRecorder()
    with recorder.installed():
        settings = Settings.load(models=["demo"])
        (model,) = settings.models
        worker = ManagedWorker(model)
        app = create_app(ScoringService([(model, worker)], settings), settings)
        try:
            with live(app) as server, server.client() as client:
                until(lambda: client.get("/ready").status_code == 200)
                for number in range(3):  # the last one runs nothing for the first time
                    recorder.is_recording = number == 2
                    conversation = [
                        {"role": "user", "content": f"{number}+2?"},
                        {"role": "assistant", "content": "4"},
                    ]
                    answer = client.post("/v1/score", json={"messages": conversation})
                    assert "reward" in answer.json()["results"][0]
                # The log line follows the response.
                until(lambda: "serve/escaping.py" in recorder.files)
                recorder.is_recording = False
        finally:
            worker.close()
    assert "serve/worker/worker.py" in recorder.files
    assert len(recorder.files) <= MAX_FILES, "\n".join(sorted(recorder.files))
    assert recorder.files <= list_documented_files()
