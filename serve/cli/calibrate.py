"""Options of `skyreward calibrate`; `serve.jobs.calibrate` runs the job."""

from __future__ import annotations

import sys
from typing import Any

import click

from serve.cli.options import (
    SingleValueCommand,
    aggregation_option,
    column_options,
    echo_status,
    executor_options,
    handle_errors,
    input_options,
    pop_columns,
    pop_executor_options,
    reward_cache_option,
    state_option,
    truncation_option,
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
