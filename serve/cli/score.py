"""`skyreward score`: its options. What it does is in `serve.jobs.command`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from serve.cli.options import (
    LOADING_OPTIONS,
    CommandT,
    column_options,
    echo_status,
    get_given_options,
    handle_errors,
    model_options,
    pop_columns,
    refuse_with_url,
    service_options,
    truncation_option,
)


def _ray_options(command: CommandT) -> CommandT:
    options = (
        click.option(
            "--ray",
            metavar="ADDRESS",
            help="Score on a Ray cluster, a model on each GPU; `auto` finds one, `local` starts "
            "one here.",
        ),
        click.option(
            "--ray-actors",
            type=click.IntRange(min=1),
            metavar="N",
            help="Models on that cluster; by default as many as it has room for, and more when it "
            "grows.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _job_options(command: CommandT) -> CommandT:
    options = (
        click.option("--split", help="Of a `datasets` folder or an hf:// set that has several."),
        click.option("--limit", type=click.IntRange(min=1), metavar="N", help="First N rows only."),
        click.option(
            "--chunk-rows",
            type=click.IntRange(min=1),
            default=2_000,
            show_default=True,
            metavar="N",
            help="Rows that are scored and kept together.",
        ),
        click.option("--fail-fast", is_flag=True, help="End at the first row with an error."),
        click.option("--overwrite", is_flag=True, help="Start afresh, whatever is there."),
        click.option(
            "--replace-results",
            is_flag=True,
            help="Columns of INPUT that are named like results (`reward`, `margin`, `error`, ...) "
            "are of an earlier run: write the new ones in their place.",
        ),
        click.option(
            "--dry-run", is_flag=True, help="Count tokens, estimate the time, write nothing."
        ),
        click.option(
            "--report",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Write a page of HTML with the distribution of rewards and margins.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("input")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path))
@service_options
@_ray_options
@model_options
@truncation_option
@column_options
@_job_options
@handle_errors
def score(input: str, output: Path | None, **options: Any) -> None:
    """Score a file of any size into another; a second start goes on where the first one ended.

    INPUT is JSONL (also .gz), Parquet, a folder or a quoted glob of these, a folder that
    `datasets` saved, or hf://datasets/ORG/NAME; OUTPUT ends with .jsonl, .jsonl.gz or .parquet.
    Rows are conversations, pairs or groups, told by their columns; other columns are carried
    through. What is done is kept in OUTPUT.job. A row that cannot be scored gets an `error`, and
    the exit code is 3 if there was one.

    Example: skyreward score pairs.jsonl -o scored.jsonl --model demo
    """
    from serve.jobs.command import ExecutorOptions, run

    if output is None and not options["dry_run"]:
        raise click.UsageError("give an output: -o FILE")
    model = {name: options.pop(name) for name in ("model", *LOADING_OPTIONS)}
    urls, ray, ray_actors = (options.pop(name) for name in ("urls", "ray", "ray_actors"))
    if urls and ray:
        raise click.UsageError("--url and --ray are two ways to score; give one of them")
    if ray_actors and not ray:
        raise click.UsageError("--ray-actors is for a Ray cluster; give --ray ADDRESS too")
    given = get_given_options(model)
    if urls:
        refuse_with_url(option for option in given if option != "model")
    ways = ExecutorOptions(
        model=model,
        urls=urls,
        # A service has models of its own: only a model that was really named is asked for.
        served_model=model["model"] if "model" in given else None,
        api_key=options.pop("api_key"),
        retry_s=options.pop("retry_s"),
        timeout_s=options.pop("timeout_s"),
        ray=ray,
        ray_actors=ray_actors,
    )
    columns = pop_columns(options)
    sys.exit(run(input, output, ways, notify=echo_status, columns=columns, **options))
