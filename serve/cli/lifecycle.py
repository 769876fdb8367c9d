"""`skyreward sleep`, `wake` and `reload`: the life of a model of a running service."""

from __future__ import annotations

import json
from typing import Any

import click

from serve.cli.options import CommandT, SingleValueCommand, add_options, handle_errors

# Large models are read for minutes.
_TIMEOUT_S = 3600.0


def _service_options(command: CommandT) -> CommandT:
    """Add the options that name a running service and one of its models."""
    return add_options(
        command,
        click.option(
            "--url",
            "urls",
            multiple=True,
            default=["http://127.0.0.1:8000"],
            help="URL of the running service. May be given several times.",
        ),
        click.option("--model", help="Alias of the model, if the service has several."),
        click.option(
            "--api-key",
            envvar="SKYREWARD_API_KEY",
            show_envvar=True,
            help="One of the service's `admin_api_keys`.",
        ),
        click.option(
            "--retry-s",
            type=click.FloatRange(min=0),
            default=0,
            help="Seconds to keep retrying while a service is unreachable or its model sleeps.",
        ),
    )


@click.command(cls=SingleValueCommand)
@click.option(
    "--level",
    type=click.IntRange(1, 2),
    default=1,
    help="1 keeps the weights in the host's memory; 2 drops them, and reads them again later.",
)
@_service_options
@handle_errors
def sleep(level: int, **service: Any) -> None:
    """Free the memory of a model's device, and print the answer as a line of JSON for each URL.

    Example: skyreward sleep --url http://127.0.0.1:8000 --level 2
    """
    _print_answers("sleep", service, level=level)


@click.command(cls=SingleValueCommand)
@_service_options
@handle_errors
def wake(**service: Any) -> None:
    """Put a model that sleeps on its device again.

    Example: skyreward wake --url http://127.0.0.1:8000
    """
    _print_answers("wake", service)


@click.command("reload", cls=SingleValueCommand)
@click.argument("source")
@click.option(
    "--version",
    help="Name of the weights in fingerprints.  [default: the folder's name or the commit]",
)
@_service_options
@handle_errors
def reload_weights(source: str, version: str | None, **service: Any) -> None:
    """Replace a model's weights while the service runs; no request fails.

    SOURCE is a folder that the service can read, or ORG/NAME@REVISION on the hub.

    Example: skyreward reload /runs/7/checkpoint-100 --url http://127.0.0.1:8000
    """
    _print_answers("reload", service, source=source, version=version)


def _print_answers(action: str, service: dict[str, Any], **fields: Any) -> None:
    from serve.client import ScoringClient

    urls, model, api_key = service["urls"], service["model"], service["api_key"]
    options = {"retry_timeout_s": service["retry_s"], "timeout_s": _TIMEOUT_S}
    with ScoringClient(urls, model, api_key=api_key, **options) as client:
        for answer in getattr(client, action)(**fields):
            click.echo(json.dumps(answer))
