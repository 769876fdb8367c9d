"""Options of `skyreward score` and `calibrate`; `serve.jobs` runs the jobs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from serve.cli.options import (
    LocalPath,
    SingleValueCommand,
    aggregation_option,
    column_options,
    echo_status,
    executor_options,
    handle_errors,
    input_options,
    pop_columns,
    pop_executor_options,
    pop_push,
    push_options,
    reward_cache_option,
    state_option,
    truncation_option,
)


@click.command(cls=SingleValueCommand)
@click.argument("input")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="File or address to write.")
@executor_options
@reward_cache_option
@truncation_option
@aggregation_option
@click.option(
    "--orders",
    type=click.Choice(["both", "given"]),
    help="Orders in which a judge reads the answers of a pair; given: `chosen` first.  [default: "
    "both]",
)
@column_options
@input_options
@state_option
@click.option("--fail-fast", is_flag=True, help="Stop at the first row with an error.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Discard the existing output and job state, and score all rows again.",
)
@click.option(
    "--retry-errors",
    is_flag=True,
    help="Score the rows again that have an error in the job of OUTPUT, finished or interrupted, "
    "and replace OUTPUT. All other rows keep their results.",
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
    type=LocalPath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write an HTML report with the distributions of rewards and margins.",
)
@push_options
@handle_errors
def score(input: str, output: str | None, **options: Any) -> None:
    """Score a file of any size. An interrupted job resumes when the command is run again.

    INPUT is JSONL (also .gz), Parquet, a folder or a quoted glob of these, a folder saved by
    `datasets`, or hf://datasets/ORG/NAME. OUTPUT ends with .jsonl, .jsonl.gz or .parquet. Both may
    be addresses such as s3://BUCKET/FILE. Rows are conversations, pairs or groups, recognized by
    their columns; all other columns are copied to OUTPUT. A step model also reads lists of steps,
    and a judge compares the answers of pairs and groups. Finished chunks are kept in OUTPUT.job, or
    where --state says. A row that cannot be scored gets an `error`, and the exit code is 3 if any
    row has one.

    Example: skyreward score pairs.jsonl -o scored.jsonl --model demo
    """
    from serve.jobs.command import run

    if output is None and not options["dry_run"]:
        raise click.UsageError("give an output: -o FILE")
    for other in ("dry_run", "overwrite"):
        if options["retry_errors"] and options[other]:
            raise click.UsageError(
                f"--retry-errors and --{other.replace('_', '-')} exclude each other; give one of "
                "the two"
            )
    push = pop_push(options)
    executor = pop_executor_options(options)
    columns = pop_columns(options)
    sys.exit(
        run(input, output, executor, notify=echo_status, columns=columns, push=push, **options)
    )


@click.command(cls=SingleValueCommand)
@click.argument("input")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="File or address of the calibration, which ends with .json.",
)
@executor_options
@reward_cache_option
@truncation_option
@aggregation_option
@column_options
@input_options
@state_option
@click.option("--overwrite", is_flag=True, help="Discard an earlier state, and score all again.")
@handle_errors
def calibrate(input: str, output: str, **options: Any) -> None:
    """Write mean, standard deviation and quantiles of the rewards of INPUT.

    INPUT is read as `skyreward score` reads it, and an interrupted run resumes. The file is for the
    setting `calibration` of a served model, whose answers then have `calibrated_reward`.

    Example: skyreward calibrate pairs.jsonl --model demo -o demo-calibration.json
    """
    from serve.jobs.calibrate import run_calibration

    executor = pop_executor_options(options)
    columns = pop_columns(options)
    sys.exit(
        run_calibration(input, output, executor, notify=echo_status, columns=columns, **options)
    )
