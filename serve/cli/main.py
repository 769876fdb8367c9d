"""`skyreward`: the command line. Each command imports what it needs only when it runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from serve import __version__
from serve.cli.eval import compare_runs, evaluate, leaderboard
from serve.cli.options import (
    column_options,
    echo_status,
    get_status_reporter,
    handle_errors,
    model_options,
    pop_columns,
    truncation_option,
)
from serve.cli.plan import plan
from serve.cli.score import score
from serve.escaping import escape_line

_EXAMPLES = """\b
Examples:
  skyreward serve --model Skywork/Skywork-Reward-V2-Qwen3-0.6B --port 8000
  skyreward score pairs.jsonl -o scored.jsonl --model demo
  skyreward eval rm-bench --data rm-bench/ --model demo -o results/
  skyreward models Skywork-Reward-V2-Qwen3-0.6B
  skyreward render --model demo conversations.jsonl
  skyreward verify --model Skywork/Skywork-Reward-V2-Llama-3.1-8B
  skyreward plan --model Skywork-Reward-V2-Llama-3.1-8B --gpu h200
"""


class _EscapingGroup(click.Group):
    """Commands whose error messages cannot control a terminal."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """See click."""
        with _escape_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """See click; errors in a command's own arguments are raised in here too."""
        with _escape_errors():
            return super().invoke(ctx)


@contextlib.contextmanager
def _escape_errors() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        message = escape_line(error.format_message())
        vars(error)["format_message"] = lambda: message
        raise


@click.group(
    cls=_EscapingGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXAMPLES,
)
@click.version_option(__version__, prog_name="skyreward")
def main() -> None:
    """Score conversations with Skywork-Reward models, exactly and fast."""


@main.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="`demo`, a folder or a hub id; ALIAS=NAME renames it, NAME@REVISION pins it. "
    "Several serve several models.  [default: demo]",
)
@click.option("--replicas", type=click.IntRange(min=1), help="Copies of each model.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="YAML with settings by name; options here win.",
)
@click.option(
    "--api-keys",
    "api_keys_file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Keys, one a line, one of which every request must bring.  [default: open to all]",
)
@click.option("--local", is_flag=True, help="One process without Ray, for laptops and tests.")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on.  [default: 8000]")
@click.option(
    "--tls-cert",
    "tls_cert_file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="PEM certificates; with --tls-key, speak HTTPS.",
)
@click.option(
    "--tls-key",
    "tls_key_file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="PEM key of the certificate.",
)
@click.option(
    "--insecure-ray",
    is_flag=True,
    default=None,
    help="Start Ray without a token if RAY_AUTH_MODE asks for that: whoever reaches its ports can "
    "run code.",
)
@handle_errors
def serve(
    models: tuple[str, ...], replicas: int | None, config: Path | None, local: bool, **options: Any
) -> None:
    """Run the service in the foreground.

    Example: skyreward serve --model Skywork/Skywork-Reward-V2-Qwen3-0.6B --port 8000
    """
    from serve.config.model_settings import ModelSettings
    from serve.config.settings import Settings, read_settings_file
    from serve.launch.ray import run_locally, run_with_ray

    chosen = read_settings_file(config) if config else {}
    chosen |= {name: value for name, value in options.items() if value is not None}
    if models:
        chosen["models"] = list(models)
    settings = Settings.load(**chosen)
    if replicas is not None:
        copies = [
            ModelSettings.model_validate(m.model_dump() | {"num_replicas": replicas})
            for m in settings.models
        ]
        settings = Settings.load(**(settings.model_dump() | {"models": copies}))
    (run_locally if local else run_with_ray)(settings, get_status_reporter(settings.log_format))


main.add_command(score)
main.add_command(evaluate)
main.add_command(compare_runs)
main.add_command(leaderboard)
main.add_command(plan)


@main.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Plain JSON instead of tables.")
@handle_errors
def models(name: str | None, as_json: bool) -> None:
    """The catalogue of known checkpoints, or one of them in full.

    Example: skyreward models Skywork-Reward-V2-Qwen3-0.6B
    """
    from serve.cli.catalog import print_catalog, print_entry

    if name is None:
        print_catalog(as_json)
    else:
        print_entry(name, as_json)


@main.command()
@click.argument("file", type=click.File("rb"))
@model_options
@truncation_option
@column_options
@handle_errors
def render(file: Any, truncation: Any, **options: Any) -> None:
    """Exactly what is scored of each conversation in a JSONL file, as JSON lines.

    Text, token ids, readout position and truncation; no weights are loaded. FILE may be `-`.
    Columns are read as `skyreward score` reads them.

    Example: skyreward render --model demo conversations.jsonl
    """
    from serve.jobs.columns import Columns
    from serve.jobs.model_options import build_model_config
    from serve.jobs.render import render_lines

    columns = Columns(**pop_columns(options))
    failed = render_lines(file, build_model_config(**options), truncation, click.echo, columns)
    if failed:
        sys.exit(3)


@main.command()
@model_options
@handle_errors
def verify(**model: Any) -> None:
    """Compare our rewards with plain transformers' and with published ones.

    Example: skyreward verify --model Skywork/Skywork-Reward-V2-Llama-3.1-8B
    """
    from rm_core import RewardScorer
    from rm_core.verification import verify as run_checks
    from serve.cli.catalog import print_checks
    from serve.jobs.model_options import build_model_config

    echo_status("loading the model")
    scorer = RewardScorer.load(build_model_config(**model))
    checks = run_checks(scorer, echo_status)
    print_checks(scorer.describe(), checks)
    if not checks or not all(check.passed for check in checks):
        sys.exit(1)


if __name__ == "__main__":
    main()
