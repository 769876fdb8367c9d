"""The program of `make demo`."""

from __future__ import annotations

import subprocess
import sys


def test_demo_ranks_sample_pairs() -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "serve.cli.demo"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    positive, total = completed.stdout.split(" margins are positive")[0].split()[-3::2]
    assert int(total) >= 24
    assert int(positive) / int(total) >= 20 / 24
