"""What all commands have in common: how they end."""

from __future__ import annotations

import click
from click.testing import CliRunner

from serve.cli.options import handle_errors


def test_ctrl_c_where_a_command_does_not_listen_is_130() -> None:
    @click.command()
    @handle_errors
    def command() -> None:
        raise KeyboardInterrupt

    result = CliRunner().invoke(command)
    assert result.exit_code == 130
    assert "stopped" in result.output
