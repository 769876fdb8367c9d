"""Options of `skyreward score`; `serve.jobs.command` runs the job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from serve.cli.options import (
    LOADING_OPTIONS,
    SingleValueCommand,
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


@click.command(cls=SingleValueCommand)
@click.argument("input")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path))
@service_options
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Score on a Ray cluster, with one copy of the model per GPU. `auto` finds a "
    "running cluster, `local` starts one on this machine.",
)
@click.option(
    "--ray-actors",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of actors on the Ray cluster, each with its own copy of the model. By "
    "default as many as fit, and more when the cluster grows.",
)
@model_options
@truncation_option
@click.option(
    "--aggregation",
    type=click.Choice(["last", "min", "mean", "product"]),
    help="How a step model's rewards of steps become the reward.  [default: last]",
)
@click.option(
    "--orders",
    type=click.Choice(["both", "given"]),
    help="Orders in which a judge reads the answers of a pair; given: `chosen` first.  [default: "
    "both]",
)
@column_options
@click.option(
    "--split",
    help="Split to score, for a `datasets` folder or an hf:// dataset with several splits.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Score only the first N rows.",
)
@click.option("--fail-fast", is_flag=True, help="Stop at the first row with an error.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Discard the existing output and job state, and score all rows again.",
)
@click.option(
    "--replace-results",
    is_flag=True,
    help="Treat columns of INPUT that are named like results (`reward`, `margin`, "
    "`error`, ...) as results of an earlier run, and replace them.",
)
@click.option("--dry-run", is_flag=True, help="Count tokens and estimate the time; write nothing.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write an HTML report with the distributions of rewards and margins.",
)
@handle_errors
def score(input: str, output: Path | None, **options: Any) -> None:
    """Score a file of any size. An interrupted job resumes when the command is run again.

    INPUT is JSONL (also .gz), Parquet, a folder or a quoted glob of these, a folder saved by
    `datasets`, or hf://datasets/ORG/NAME. OUTPUT ends with .jsonl, .jsonl.gz or .parquet. Rows are
    conversations, pairs or groups, recognized by their columns; all other columns are copied to
    OUTPUT. A step model also reads lists of steps, and a judge compares the answers of pairs and
    groups. Finished chunks are kept in OUTPUT.job. A row that cannot be scored gets an `error`,
    and the exit code is 3 if any row has one.

    Example: skyreward score pairs.jsonl -o scored.jsonl --model demo
    """
    from serve.jobs.command import ExecutorOptions, run

    if output is None and not options["dry_run"]:
        raise click.UsageError("give an output: -o FILE")
    model = {name: options.pop(name) for name in ("model", *LOADING_OPTIONS)}
    urls, ray, ray_actors = (options.pop(name) for name in ("urls", "ray", "ray_actors"))
    if urls and ray:
        raise click.UsageError("--url and --ray exclude each other; give one of the two")
    if ray_actors and not ray:
        raise click.UsageError("--ray-actors needs a Ray cluster; give --ray ADDRESS too")
    given = get_given_options(model)
    if urls:
        refuse_with_url(option for option in given if option != "model")
    executor_options = ExecutorOptions(
        model=model,
        urls=urls,
        # A service has its own models: request one only if the user named it.
        served_model=model["model"] if "model" in given else None,
        api_key=options.pop("api_key"),
        retry_s=options.pop("retry_s"),
        timeout_s=options.pop("timeout_s"),
        ray=ray,
        ray_actors=ray_actors,
    )
    columns = pop_columns(options)
    sys.exit(run(input, output, executor_options, notify=echo_status, columns=columns, **options))
