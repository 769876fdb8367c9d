"""What `make demo` runs, once the environment is there."""

from __future__ import annotations

import subprocess
import sys


def test_demo() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serve.cli.demo"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    positive, total = done.stdout.split(" margins are positive")[0].split()[-3::2]
    assert int(total) >= 24
    assert int(positive) / int(total) >= 20 / 24
