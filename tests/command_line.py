"""`skyreward` run in this process, and as one of its own."""

from __future__ import annotations

import subprocess
import sys

from click.testing import CliRunner, Result

from serve.cli.main import main

SKYREWARD = [sys.executable, "-m", "serve.cli.main"]


def invoke(*arguments: object, stdin: str | None = None) -> Result:
    """Run a command in this process. An exception that no command handles fails the test."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command as a process; return it with what it printed."""
    return subprocess.run(
        [*SKYREWARD, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
