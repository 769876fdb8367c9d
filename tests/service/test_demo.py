"""The program of `make demo`."""

from __future__ import annotations

import subprocess
import sys

import preloaded
import pytest

from serve.cli import demo


def assert_ranks_pairs(printed: str) -> None:
    positive, total = printed.split(" margins are positive")[0].split()[-3::2]
    assert int(total) >= 24
    assert int(positive) / int(total) >= 20 / 24


def test_demo_ranks_sample_pairs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "run_service", preloaded.run_service)
    assert demo.main() == 0
    assert_ranks_pairs(capsys.readouterr().out)


@pytest.mark.slow
def test_demo_on_ray_ranks_sample_pairs() -> None:
    """The fixture `service` starts Ray as the demo does."""
    done = subprocess.run(
        [sys.executable, "-m", "serve.cli.demo"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_ranks_pairs(done.stdout)
