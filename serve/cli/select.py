"""Options of `skyreward select`; `serve.selection.command` runs it."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import click

from serve.cli.options import (
    SingleValueCommand,
    column_options,
    echo_status,
    handle_errors,
    pop_columns,
    pop_push,
    push_options,
)


class _Top(click.ParamType[int | Fraction]):
    """A number of answers, or a percentage of all as a fraction."""

    name = "N|N%"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Fraction:
        """Parse the text of the command line."""
        try:
            if value.endswith("%"):
                share = Fraction(value[:-1]) / 100
                if 0 < share <= 1:
                    return share
            elif int(value) > 0:
                return int(value)
        except (ValueError, ZeroDivisionError):
            pass
        self.fail(f"{value!r} is neither a number above 0 nor a percentage up to 100%", param, ctx)


_GOES_WITH = {
    "against": "--pairs",
    "min_margin": "--pairs",
    "max_length_ratio": "--pairs and --best-of-n",
    "seed": "--pairs --against random",
}


@click.command(cls=SingleValueCommand)
@click.argument("input")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="File or address to write, which ends with .jsonl, .jsonl.gz or .parquet.",
)
@click.option("--best-of-n", is_flag=True, help="Select the best answer to each prompt.")
@click.option("--pairs", is_flag=True, help="Select preference pairs.")
@click.option(
    "--top",
    type=_Top(),
    help="Select the answers with the highest rewards of all prompts, such as 10% of all.",
)
@click.option(
    "--against",
    type=click.Choice(["worst", "random", "all"]),
    help="With --pairs: reject the worst answer, a random worse one, or form every pair of a "
    "better and a worse answer.  [default: worst]",
)
@click.option(
    "--min-margin",
    type=click.FloatRange(min=0),
    metavar="X",
    help="With --pairs: smallest difference of the two rewards. Equal rewards are never a pair.",
)
@click.option(
    "--max-length-ratio",
    type=click.FloatRange(min=1),
    metavar="R",
    help="With --pairs: the longer answer has at most R times the characters of the shorter. With "
    "--best-of-n: the answer is at most R times longer or shorter than the median.",
)
@click.option("--seed", type=int, help="Seed of --against random.  [default: 0]")
@click.option(
    "--keep-column",
    "keep_columns",
    multiple=True,
    metavar="COLUMN",
    help="Column to copy from the row of the selected answer; may be given several times.",
)
@column_options
@click.option("--split", help="Split to read, for a `datasets` folder or an hf:// dataset.")
@push_options
@handle_errors
def select(
    input: str,
    output: str,
    best_of_n: bool,
    pairs: bool,
    top: int | Fraction | None,
    **options: Any,
) -> None:
    """Select best answers or preference pairs from INPUT, the output of `skyreward score`.

    Answers to equal prompts belong together, wherever they are in INPUT. The columns are those of
    TRL: prompt and completion, or prompt, chosen and rejected, with rewards and margin. A report of
    what was selected and dropped is written to FILE.selection.json.

    Example: skyreward select scored.jsonl -o pairs.jsonl --pairs --min-margin 0.5
    """
    from serve.selection.choices import Choice
    from serve.selection.command import run_selection

    if best_of_n + pairs + (top is not None) != 1:
        raise click.UsageError("give one of --best-of-n, --pairs and --top")
    settings = {
        name: options.pop(name) for name in ("against", "min_margin", "max_length_ratio", "seed")
    }
    given = {name: value for name, value in settings.items() if value is not None}
    allowed = {"max_length_ratio"} if best_of_n else set(settings) if pairs else set()
    if not pairs or given.get("against") != "random":
        allowed.discard("seed")
    if not all(math.isfinite(x) for x in given.values() if isinstance(x, float)):
        raise click.UsageError("--min-margin and --max-length-ratio are finite numbers")
    for name in given:
        if name not in allowed:
            raise click.UsageError(
                f"--{name.replace('_', '-')} goes with {_GOES_WITH[name]}; leave it out"
            )
    choice = Choice("best-of-n" if best_of_n else "pairs" if pairs else "top", top, **given)
    push = pop_push(options)
    columns = pop_columns(options)
    run_selection(input, output, choice, notify=echo_status, columns=columns, push=push, **options)
