"""Options and error handling that all commands share."""

from __future__ import annotations

from typing import Any

import click
from click.testing import CliRunner

from serve.cli.options import handle_errors, model_options
from serve.jobs.command import build_model_config


def test_keyboard_interrupt_exits_with_130() -> None:
    @click.command()
    @handle_errors
    def command() -> None:
        raise KeyboardInterrupt

    result = CliRunner().invoke(command)
    assert result.exit_code == 130
    assert "stopped" in result.output


def test_options_of_the_head_become_settings_of_the_model() -> None:
    @click.command()
    @model_options
    @handle_errors
    def command(**options: Any) -> None:
        config = build_model_config(**options)
        click.echo(f"{config.kind} {config.label_weights} {config.lm_head_tokens}")

    result = CliRunner().invoke(command, ["--kind", "classifier", "--label-weights", "0.5,-2"])
    assert result.output == "classifier (0.5, -2.0) None\n"
    result = CliRunner().invoke(command, ["--lm-head-tokens", "7,40"])
    assert result.output == "auto None (7, 40)\n"
    result = CliRunner().invoke(command, ["--lm-head-tokens", "7,x"])
    assert result.exit_code == 2
    assert "'7,x' is not a list of numbers separated by commas" in result.output
    result = CliRunner().invoke(command, ["--label", "1", "--lm-head-tokens", "7"])
    assert result.exit_code == 1
    assert "label and lm_head_tokens are set" in result.output
