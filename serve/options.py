"""What several commands share: options, one line an error, progress."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def say(text: str) -> None:
    """Tell whoever started the command, on standard error."""
    click.echo(f"skyreward: {text}", err=True)


def sayer(log_format: str) -> Callable[[str], None]:
    """Progress as a person reads it, or as lines of the log for what reads the log."""
    if log_format == "text":
        return say
    import logging

    from serve.record.formats import configure_logging

    configure_logging("INFO", "json")
    return logging.getLogger("serve.start.launch").info


def reported(command: F) -> F:
    """Errors of ours, and files that cannot be used, become one line and exit code 1."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        from rm_core import RewardError

        try:
            return command(*args, **kwargs)
        except RewardError as error:
            raise click.ClickException(error.detail) from error
        except OSError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:  # where a command does not listen to signals itself
            say("stopped")
            sys.exit(128 + signal.SIGINT)

    return wrapper  # type: ignore[return-value]


def model_options(command: F) -> F:
    """The options that choose how a single model is loaded."""
    options = (
        click.option(
            "--model",
            default="demo",
            show_default=True,
            metavar="NAME",
            help="`demo`, a folder or a hub id; NAME@REVISION pins it.",
        ),
        click.option(
            "--dtype",
            default="auto",
            show_default=True,
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        ),
        click.option(
            "--attention",
            default="auto",
            show_default=True,
            type=click.Choice(["auto", "eager", "sdpa", "varlen", "flex", "flash_attention_2"]),
        ),
        click.option(
            "--quantization",
            default="none",
            show_default=True,
            type=click.Choice(["none", "int8", "int8-weights", "fp8", "fp8-weights"]),
            help="Fewer bits for the linear layers; `verify` says what it does to the ranking.",
        ),
        click.option(
            "--deterministic",
            is_flag=True,
            help="The same reward to the last bit in any batch; slower.",
        ),
        click.option(
            "--max-length",
            type=click.IntRange(min=1),
            metavar="N",
            help="Most tokens of one conversation.",
        ),
        click.option(
            "--chat-template",
            type=click.Path(exists=True, dir_okay=False),
            metavar="FILE",
            help="Jinja file that replaces or supplies the template.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


truncation_option = click.option(
    "--truncation",
    default="error",
    show_default=True,
    type=click.Choice(["error", "left", "right"]),
    help="What to do with what is too long.",
)
