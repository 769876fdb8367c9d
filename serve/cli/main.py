"""The command line `skyreward`. Each command imports its dependencies when it runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from serve import __version__
from serve.cli import lifecycle
from serve.cli.eval import compare_runs, evaluate, leaderboard, submission
from serve.cli.options import (
    LOADING_OPTIONS,
    SingleValueCommand,
    column_options,
    echo_status,
    get_given_options,
    get_status_reporter,
    handle_errors,
    loading_options,
    model_options,
    pop_columns,
    truncation_option,
)
from serve.cli.plan import plan
from serve.cli.score import calibrate, score
from serve.cli.select import select
from serve.escaping import escape_line

_EXAMPLES = """\b
Examples:
  skyreward serve --model Skywork/Skywork-Reward-V2-Qwen3-0.6B --port 8000
  skyreward score pairs.jsonl -o scored.jsonl --model demo
  skyreward select scored.jsonl -o best.jsonl --best-of-n
  skyreward calibrate pairs.jsonl --model demo -o demo-calibration.json
  skyreward eval rm-bench --data rm-bench/ --model demo -o results/
  skyreward models Skywork-Reward-V2-Qwen3-0.6B
  skyreward render --model demo conversations.jsonl
  skyreward verify --model Skywork/Skywork-Reward-V2-Llama-3.1-8B
  skyreward plan --model Skywork-Reward-V2-Llama-3.1-8B --gpu h200
"""


class _EscapingGroup(click.Group):
    """Group whose error messages have control characters escaped."""

    command_class = SingleValueCommand

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Create the context; see `click.Group.make_context`."""
        with _escape_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; see `click.Group.invoke`. Errors in its arguments are raised here."""
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
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
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
    help="`demo`, a local folder or a hub id; ALIAS=NAME sets an alias, NAME@REVISION pins a "
    "revision, BASE+ADAPTER merges a LoRA adapter into its base model. May be given several times "
    "to serve several models.  [default: demo]",
)
@click.option("--replicas", type=click.IntRange(min=1), help="Number of replicas of each model.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="YAML file of settings; command-line options take precedence. Its `models` and --model "
    "exclude each other.",
)
@click.option(
    "--api-keys",
    "api_keys_file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="File of API keys, one per line; every request must send one of the keys.  [default: no "
    "keys, open to everyone]",
)
@click.option(
    "--admin-api-keys",
    "admin_api_keys_file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="File of API keys that may put models to sleep, wake and reload them, one per line.  "
    "[default: no keys, only clients on this machine]",
)
@click.option(
    "--watch",
    "watched",
    multiple=True,
    metavar="FOLDER",
    help="Take each complete new checkpoint that appears as a subfolder of FOLDER; ALIAS=FOLDER "
    "names one of several models.",
)
@click.option(
    "--local", is_flag=True, help="Run in a single process without Ray, for laptops and tests."
)
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on.  [default: 8000]")
@click.option(
    "--tls-cert",
    "tls_cert_file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="PEM file of certificates; serve HTTPS together with --tls-key.",
)
@click.option(
    "--tls-key",
    "tls_key_file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="PEM file of the certificate's private key.",
)
@click.option(
    "--insecure-ray",
    is_flag=True,
    default=None,
    help="Start Ray without a token if RAY_AUTH_MODE disables tokens. Anyone who can reach Ray's "
    "ports can then run code.",
)
@loading_options
@handle_errors
def serve(
    models: tuple[str, ...],
    replicas: int | None,
    config: Path | None,
    watched: tuple[str, ...],
    local: bool,
    **options: Any,
) -> None:
    """Run the service in the foreground.

    Options of loading, from --dtype to --judge-template, need a service of one model; for several,
    write the settings of each in the file of --config.

    Example: skyreward serve --model Skywork/Skywork-Reward-V2-Qwen3-0.6B --port 8000
    """
    from serve.config.settings import Settings, read_settings_file
    from serve.launch.ray import run_locally, run_with_ray
    from serve.launch.watch import parse_watched_folders

    given = get_given_options(LOADING_OPTIONS)
    loading = {name: options.pop(name) for name in LOADING_OPTIONS}
    changes = {name: loading[name] for name in given}
    if replicas is not None:
        changes["num_replicas"] = replicas
    overrides = read_settings_file(config) if config else {}
    if models and "models" in overrides:
        raise click.UsageError(
            f"--model and `models` in {config} both name the models; give one of the two: --model "
            "with options such as --kind for one model, or every model in the file"
        )
    overrides |= {name: value for name, value in options.items() if value is not None}
    if models:
        overrides["models"] = list(models)
    settings = Settings.load(**overrides)
    if given and len(settings.models) > 1:
        raise click.UsageError(
            f"--{given[0].replace('_', '-')} is a setting of one model, and "
            f"{len(settings.models)} are served; write `{given[0]}` for the model it belongs to, "
            "under `models` in the file of --config"
        )
    if changes:
        changed = [m.model_dump(exclude_unset=True) | changes for m in settings.models]
        settings = Settings.load(**(settings.model_dump() | {"models": changed}))
    run = run_locally if local else run_with_ray
    notify = get_status_reporter(settings.log_format)
    run(settings, notify, parse_watched_folders(watched, settings))


main.add_command(score)
main.add_command(select)
main.add_command(calibrate)
main.add_command(evaluate)
main.add_command(compare_runs)
main.add_command(leaderboard)
main.add_command(submission)
main.add_command(plan)
main.add_command(lifecycle.sleep)
main.add_command(lifecycle.wake)
main.add_command(lifecycle.reload_weights)


@main.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@handle_errors
def models(name: str | None, as_json: bool) -> None:
    """List the known checkpoints, or show all facts of the checkpoint NAME.

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
    """Print what the model reads of each conversation in a JSONL file, as JSON lines.

    Prints text, token ids, readout position and truncation, without loading weights. FILE may be
    `-` for standard input. Columns are read as `skyreward score` reads them.

    Example: skyreward render --model demo conversations.jsonl
    """
    from serve.jobs.columns import Columns
    from serve.jobs.command import build_model_config
    from serve.jobs.render import render_lines

    columns = Columns(**pop_columns(options))
    name = str(getattr(file, "name", ""))
    path = Path(name) if Path(name).is_file() else None  # not so for standard input
    config = build_model_config(**options)
    failed = render_lines(file, config, truncation, click.echo, columns, path)
    if failed:
        sys.exit(3)


@main.command()
@model_options
@handle_errors
def verify(**model: Any) -> None:
    """Compare rewards of a model with plain transformers and with published rewards.

    Example: skyreward verify --model Skywork/Skywork-Reward-V2-Llama-3.1-8B
    """
    from rm_core import RewardScorer
    from rm_core.verification import verify as run_checks
    from serve.cli.catalog import print_checks
    from serve.jobs.command import build_model_config

    echo_status("loading the model")
    scorer = RewardScorer.load(build_model_config(**model))
    checks = run_checks(scorer, echo_status)
    print_checks(scorer.describe(), checks)
    if not checks or not all(check.passed for check in checks):
        sys.exit(1)


@main.command()
@click.argument("model")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder to write; must be empty or not exist.",
)
@click.option(
    "--allow-bin",
    is_flag=True,
    help="Read the pickle files of a checkpoint that the catalogue does not know as published so; "
    "only tensors are read, no code.",
)
@handle_errors
def convert(model: str, output: Path, **options: Any) -> None:
    """Write the weights of MODEL, pytorch_model*.bin, as safetensors.

    Configuration and tokenizer files are copied; the rewards stay the same. MODEL is a folder or a
    hub id; NAME@REVISION pins a revision.

    Example: skyreward convert Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B -o prm-1.5b/
    """
    from rm_core.model.conversion import convert_checkpoint
    from serve.jobs.command import build_model_config

    echo_status(f"wrote {convert_checkpoint(build_model_config(model, **options), output)}")


if __name__ == "__main__":
    main()
