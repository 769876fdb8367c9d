"""`skyreward eval`, `compare-runs`, `leaderboard`: their options, no more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from serve.cli.options import (
    LOADING_OPTIONS,
    CommandT,
    echo_status,
    get_given_options,
    handle_errors,
    loading_options,
    refuse_with_url,
    service_options,
)
from serve.escaping import dump_json

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


# Those of `rm_core.benchmarks.registry`, without importing all of the engine for `--help`.
BENCHMARK_NAMES = (
    "rewardbench",
    "rewardbench2",
    "rm-bench",
    "rmb",
    "judgebench",
    "ppe-preference",
    "ppe-correctness",
)
_benchmark_argument = click.argument("benchmark", type=click.Choice(BENCHMARK_NAMES))


def _data_options(command: CommandT) -> CommandT:
    options = (
        click.option(
            "--data",
            metavar="PATH",
            help="Its rows: a file, folder or quoted glob in any published form, or "
            "hf://datasets/ORG/NAME.  [default: the benchmark's own sets on the hub]",
        ),
        click.option("--split", help="Of a folder or a hub set.  [default: the official one]"),
        click.option(
            "--variant",
            "chosen",
            multiple=True,
            metavar="NAME=VALUE",
            help="Published variant of a computation; `--variant help` lists them.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("eval")
@_benchmark_argument
@_data_options
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="`demo`, a folder or a hub id; ALIAS=NAME renames it, NAME@REVISION pins it. Several are "
    "scored one after the other and compared. With --url: which of the service's models.",
)
@service_options
@click.option(
    "--scores",
    type=_FILE,
    metavar="FILE",
    help="Rewards that are there already: lines with `id`, `subset` and `rewards`.",
)
@click.option("--name", help="What the model behind --scores is called.")
@click.option("-o", "--output", type=_FOLDER, metavar="DIR")
@click.option(
    "--truncation",
    type=click.Choice(["error", "left", "right"]),
    help="What to do with what is too long.  [default: as the benchmark's own runner]",
)
@loading_options
@click.option("--overwrite", is_flag=True, help="Score afresh, whatever DIR has.")
@handle_errors
def evaluate(
    benchmark: str, chosen: tuple[str, ...], scores: Path | None, name: str | None, **options: Any
) -> None:
    """The figures of a benchmark for a model, a service or a file of rewards.

    DIR gets summary.json, scores.jsonl, summary.md and report.html. The same command goes on where
    it was ended. --max-length is the benchmark's own unless given. The exit code is 3 if an item
    could not be scored.

    Example: skyreward eval rm-bench --data rm-bench/ --model demo -o results/
    """
    from serve.evaluation.command import EvalRequest, evaluate_models, evaluate_scores

    made = _load_benchmark(benchmark, chosen)
    if options["output"] is None:
        raise click.UsageError("give a folder: -o DIR")
    asked = EvalRequest(made, options["data"], options["split"], options["output"], echo_status)
    models, urls = options["models"], options["urls"]
    if scores is not None:
        if models or urls:
            raise click.UsageError("--scores has the rewards already; leave --model and --url out")
        for useless in get_given_options(("truncation", *LOADING_OPTIONS)):
            raise click.UsageError(f"--{useless.replace('_', '-')} scores nothing with --scores")
        sys.exit(evaluate_scores(asked, scores, name, overwrite=options["overwrite"]))
    if name is not None:
        raise click.UsageError("--name is for --scores; name a model by --model ALIAS=NAME")
    if not (models or urls):
        raise click.UsageError("give --model NAME, --url URL or --scores FILE")
    sys.exit(
        evaluate_models(
            asked,
            _build_executor_options(models, urls, options),
            truncation=options["truncation"],
            overwrite=options["overwrite"],
        )
    )


@click.command("compare-runs")
@click.argument("a", type=click.Path(exists=True, path_type=Path))
@click.argument("b", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--benchmark",
    type=click.Choice(BENCHMARK_NAMES),
    help="What files of rewards are of; folders tell it.",
)
@click.option(
    "--data", metavar="PATH", help="The items of files of rewards; folders have their own."
)
@click.option("--split", help="Of the data.")
@click.option(
    "--limit",
    "show",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Number of changed items to print.",
)
@click.option("--json", "as_json", is_flag=True, help="Plain JSON instead of tables.")
@handle_errors
def compare_runs(a: Path, b: Path, show: int, as_json: bool, **options: Any) -> None:
    """What changed between two evaluations of one benchmark.

    A and B are folders that `skyreward eval` wrote, or files of rewards like its scores.jsonl.

    Example: skyreward compare-runs results/base results/tuned
    """
    from serve.evaluation.compare import compare, find_benchmark, load_run
    from serve.evaluation.compare_console import print_comparison, to_dict

    if options["benchmark"] is None:
        options["benchmark"] = find_benchmark(a) or find_benchmark(b)
    first, second = (load_run(path, notify=echo_status, **options) for path in (a, b))
    comparison = compare(first, second)
    if as_json:
        click.echo(dump_json(to_dict(comparison), indent=2))
    else:
        print_comparison(comparison, show)


@click.command()
@_benchmark_argument
@click.argument("folders", nargs=-1, type=click.Path(exists=True, path_type=Path), metavar="DIR...")
@click.option("--json", "as_json", is_flag=True, help="Plain JSON instead of a table.")
@handle_errors
def leaderboard(benchmark: str, folders: tuple[Path, ...], as_json: bool) -> None:
    """Every published row of a benchmark, and local results sorted in.

    Example: skyreward leaderboard rm-bench results/
    """
    from rm_core.benchmarks.registry import BENCHMARKS
    from serve.evaluation import leaderboard as boards

    places = boards.build_leaderboard(benchmark, folders)
    if as_json:
        click.echo(dump_json(boards.to_dicts(places), indent=2))
    else:
        boards.print_leaderboard(BENCHMARKS[benchmark].title, benchmark, places)


def _load_benchmark(name: str, variants: tuple[str, ...]) -> Any:
    from rm_core.benchmarks.registry import build_benchmark, list_options

    if "help" in variants:
        for option in list_options(name):
            click.echo(f"{option.name}={'|'.join(option.choices)}  {option.meaning}")
        sys.exit()
    pairs = [text.partition("=") for text in variants]
    for given, equals, _ in pairs:
        if not equals:
            raise click.UsageError(f"--variant {given} has no value; write NAME=VALUE, or `help`")
    return build_benchmark(name, **{given: value for given, _, value in pairs})


def _build_executor_options(
    models: tuple[str, ...], urls: tuple[str, ...], options: dict[str, Any]
) -> list[Any]:
    from serve.jobs.command import ExecutorOptions

    loading = {option: options[option] for option in LOADING_OPTIONS}
    if urls:
        refuse_with_url(get_given_options(loading))
        return [
            ExecutorOptions(
                {}, urls, served, *(options[name] for name in ("api_key", "retry_s", "timeout_s"))
            )
            for served in models or (None,)
        ]
    return [ExecutorOptions({"model": model, **loading}) for model in models]
