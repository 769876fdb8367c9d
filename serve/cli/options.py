"""What several commands share: options, one line an error, progress."""

from __future__ import annotations

import functools
import logging
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from serve.escaping import EscapingFormatter, escape_line

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def echo_status(text: str) -> None:
    """Tell whoever started the command, on standard error."""
    click.echo(f"skyreward: {escape_line(text)}", err=True)


def get_status_reporter(log_format: str) -> Callable[[str], None]:
    """Progress as a person reads it, or as lines of the log for what reads the log."""
    if log_format == "text":
        return echo_status
    from serve.telemetry.logging import configure_logging

    configure_logging("INFO", "json")
    return logging.getLogger("serve.launch.ray").info


def handle_errors(command: CommandT) -> CommandT:
    """Errors of ours, and files that cannot be used, become one line and exit code 1."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        from rm_core import RewardError

        try:
            if logging.lastResort:  # prints warnings where no log is configured
                logging.lastResort.setFormatter(EscapingFormatter("%(message)s"))
            return command(*args, **kwargs)
        except RewardError as error:
            raise click.ClickException(error.detail) from error
        except OSError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:  # where a command does not listen to signals itself
            echo_status("stopped")
            sys.exit(128 + signal.SIGINT)

    return wrapper  # type: ignore[return-value]


def model_options(command: CommandT) -> CommandT:
    """The options that choose a single model, and how it is loaded."""
    return click.option(
        "--model",
        default="demo",
        show_default=True,
        metavar="NAME",
        help="`demo`, a folder or a hub id; NAME@REVISION pins it.",
    )(loading_options(command))


def loading_options(command: CommandT) -> CommandT:
    """The options that choose how models are loaded."""
    options = (
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
        click.option(
            "--self-check/--no-self-check",
            default=True,
            show_default=True,
            help="Compare the engine with plain transformers at load, and refuse a model whose "
            "rewards differ by more than rounding.",
        ),
        click.option(
            "--template-date",
            metavar="YYYY-MM-DD",
            help="Day that a template which writes today's date gets.  [default: today]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def service_options(command: CommandT) -> CommandT:
    """The options that name running services instead of a model here."""
    options = (
        click.option(
            "--url",
            "urls",
            multiple=True,
            help="Score with a running service instead of loading a model; several share the work.",
        ),
        click.option(
            "--api-key", envvar="SKYREWARD_API_KEY", show_envvar=True, help="Of those services."
        ),
        click.option(
            "--retry-s",
            type=click.FloatRange(min=0),
            default=300,
            show_default=True,
            help="Seconds to go on trying while a service is away or refuses.",
        ),
        click.option(
            "--timeout-s",
            type=click.FloatRange(min=0, min_open=True),
            help="Seconds that a service has for one request; one that says nothing is left a "
            "little later.  [default: its own deadline; left after 600]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def get_given_options(names: Iterable[str]) -> list[str]:
    """Those of the command's options that were not left at their defaults."""
    source_of = click.get_current_context().get_parameter_source
    return [name for name in names if source_of(name) is not ParameterSource.DEFAULT]


def refuse_with_url(names: Iterable[str]) -> None:
    """End the command if a service was to be given settings that are its own.

    Raises:
        click.UsageError: names the first of them.
    """
    for name in names:
        raise click.UsageError(
            f"--{name.replace('_', '-')} is a setting of the service at --url, chosen when "
            "it starts; leave it out, or score with a model here"
        )


LOADING_OPTIONS = (
    "dtype",
    "attention",
    "quantization",
    "deterministic",
    "max_length",
    "chat_template",
    "self_check",
    "template_date",
)
"""Names of `loading_options`."""

COLUMNS = {
    "messages": "whole conversations",
    "prompt": "the prompt, text or messages; '' leaves prompts aside",
    "response": "the only answer",
    "responses": "the answers of a group; give it several times to put columns together",
    "chosen": "the better answer or conversation",
    "rejected": "the worse answer or conversation",
    "system": "the system prompt; '' leaves it aside",
    "history": "earlier turns, which go before the prompt; '' leaves them aside",
    "tools": "functions that the chat template writes; '' leaves them aside",
}
"""Columns that `--NAME-column` names, and what they hold."""


def column_options(command: CommandT) -> CommandT:
    """The options that say how the columns of a record are read; `pop_columns` takes them."""
    options = [
        click.option(
            f"--{name}-column",
            metavar="COLUMN",
            multiple=name == "responses",
            help=f"Column with {content}; A.B reaches into structs.",
        )
        for name, content in COLUMNS.items()
    ]
    options += [
        click.option(
            "--ignore-column",
            metavar="COLUMN",
            multiple=True,
            help="Column that is carried through and never read; may be given several times.",
        ),
        click.option(
            "--transcripts",
            type=click.Choice(["auto", "read", "keep"]),
            default="auto",
            show_default=True,
            help="Text that holds several turns. auto: read transcripts of \\n\\nHuman: and "
            "\\n\\nAssistant: and JSON messages as turns, with a warning. read: also <extra_id_1>, "
            "### Human: and USER: transcripts. keep: score text as it came.",
        ),
        click.option(
            "--policy-template",
            type=click.Choice(["chatml", "llama3", "gemma", "mistral"]),
            help="Family of the chat template that rendered prompts and answers that are text; "
            "their turns are read.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def pop_columns(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of `column_options` out of a command's options.

    Returns:
        Arguments of `serve.jobs.columns.Columns`.
    """
    columns = {name: options.pop(f"{name}_column") for name in COLUMNS}
    columns["ignored"] = options.pop("ignore_column")
    return columns | {name: options.pop(name) for name in ("transcripts", "policy_template")}


truncation_option = click.option(
    "--truncation",
    default="error",
    show_default=True,
    type=click.Choice(["error", "left", "right"]),
    help="What to do with what is too long.",
)
