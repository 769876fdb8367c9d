"""Options and error handling that all commands share."""

from __future__ import annotations

import click
from click.testing import CliRunner

from serve.cli.options import handle_errors


def test_keyboard_interrupt_exits_with_130() -> None:
    @click.command()
    @handle_errors
    def command() -> None:
        raise KeyboardInterrupt

    result = CliRunner().invoke(command)
    assert result.exit_code == 130
    assert "stopped" in result.output
