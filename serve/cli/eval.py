"""The commands `skyreward eval`, `compare-runs` and `leaderboard`, and their options."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from serve.cli.options import (
    LOADING_OPTIONS,
    SingleValueCommand,
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


# The names of `rm_core.benchmarks.registry`, so that `--help` does not import the engine.
BENCHMARK_NAMES = (
    "rewardbench", "rewardbench2", "rm-bench", "rmb", "judgebench", "ppe-preference",
    "ppe-correctness", "processbench", "prmbench", "best-of-n", "vl-rewardbench", "rewardmath",
    "plan-rewardbench", "m-rewardbench",
)  # fmt: skip
_benchmark_argument = click.argument("benchmark", type=click.Choice(BENCHMARK_NAMES))


@click.command("eval", cls=SingleValueCommand)
@_benchmark_argument
@click.option(
    "--data",
    metavar="PATH",
    help="Rows of the benchmark: a file, a folder or a quoted glob in any published form, "
    "or hf://datasets/ORG/NAME.  [default: the benchmark's own data sets on the hub]",
)
@click.option(
    "--split", help="Split of a folder or of a data set on the hub.  [default: the official split]"
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME=VALUE",
    help="Published variant of the computation; `--variant help` lists the variants.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="`demo`, a local folder or a hub id; ALIAS=NAME sets an alias, NAME@REVISION pins a "
    "revision, BASE+ADAPTER merges a LoRA adapter into its base model. Several models are scored "
    "one after another and compared. With --url: alias of the service's model.",
)
@service_options
@click.option(
    "--scores",
    type=_FILE,
    metavar="FILE",
    help="File of existing rewards: JSON lines with `id`, `subset` and `rewards`; for rewardmath, "
    "without --data, also a result file of its authors.",
)
@click.option("--name", help="Name of the model that produced the rewards of --scores.")
@click.option("-o", "--output", type=_FOLDER, metavar="DIR", help="Folder to write to.")
@click.option(
    "--truncation",
    type=click.Choice(["error", "left", "right"]),
    help="How to handle conversations that are too long.  [default: as the benchmark's own runner]",
)
@loading_options
@click.option("--overwrite", is_flag=True, help="Discard the results in DIR and start over.")
@handle_errors
def evaluate(
    benchmark: str, variants: tuple[str, ...], scores: Path | None, name: str | None, **options: Any
) -> None:
    """Evaluate a model, a service or a file of rewards on a benchmark.

    Writes summary.json, scores.jsonl, summary.md and report.html to DIR. Run the same command
    again to continue an interrupted evaluation. --max-length defaults to that of the benchmark.
    The exit code is 3 if an item could not be scored.

    Example: skyreward eval rm-bench --data rm-bench/ --model demo -o results/
    """
    from serve.evaluation.command import EvalRequest, evaluate_models, evaluate_scores

    loaded = _load_benchmark(benchmark, variants)
    if options["output"] is None:
        raise click.UsageError("give a folder: -o DIR")
    request = EvalRequest(loaded, options["data"], options["split"], options["output"], echo_status)
    models, urls = options["models"], options["urls"]
    if scores is not None:
        if models or urls:
            raise click.UsageError(
                "--scores already provides the rewards; leave out --model and --url"
            )
        for unused in get_given_options(("truncation", *LOADING_OPTIONS)):
            raise click.UsageError(
                f"--{unused.replace('_', '-')} has no effect with --scores; leave it out"
            )
        sys.exit(evaluate_scores(request, scores, name, overwrite=options["overwrite"]))
    if name is not None:
        raise click.UsageError("--name requires --scores; name a model with --model ALIAS=NAME")
    if not (models or urls):
        raise click.UsageError("give --model NAME, --url URL or --scores FILE")
    sys.exit(
        evaluate_models(
            request,
            _build_executor_options(models, urls, options),
            truncation=options["truncation"],
            overwrite=options["overwrite"],
        )
    )


@click.command("compare-runs", cls=SingleValueCommand)
@click.argument("a", type=click.Path(exists=True, path_type=Path))
@click.argument("b", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--benchmark",
    type=click.Choice(BENCHMARK_NAMES),
    help="Benchmark of the score files; evaluation folders have it in summary.json.",
)
@click.option(
    "--data",
    metavar="PATH",
    help="Rows of the benchmark for score files; evaluation folders have their own items.",
)
@click.option("--split", help="Split of --data.  [default: the official split]")
@click.option(
    "--limit",
    "show",
    type=click.IntRange(min=0),
    default=10,
    help="Number of changed items to print.",
)
@click.option("--json", "as_json", is_flag=True, help="Plain JSON instead of tables.")
@handle_errors
def compare_runs(a: Path, b: Path, show: int, as_json: bool, **options: Any) -> None:
    """Compare two evaluations of one benchmark item by item.

    A and B are folders that `skyreward eval` wrote, or score files in the format of scores.jsonl.

    Example: skyreward compare-runs results/base results/tuned
    """
    from serve.evaluation.compare import compare, find_benchmark, load_run, require_scipy
    from serve.evaluation.console import print_comparison

    require_scipy()
    if options["benchmark"] is None:
        options["benchmark"] = find_benchmark(a) or find_benchmark(b)
    first, second = (load_run(path, notify=echo_status, **options) for path in (a, b))
    comparison = compare(first, second)
    if as_json:
        click.echo(dump_json(comparison.to_dict(), indent=2))
    else:
        print_comparison(comparison, show)


@click.command(cls=SingleValueCommand)
@_benchmark_argument
@click.argument("folders", nargs=-1, type=click.Path(exists=True, path_type=Path), metavar="DIR...")
@click.option("--json", "as_json", is_flag=True, help="Plain JSON instead of a table.")
@handle_errors
def leaderboard(benchmark: str, folders: tuple[Path, ...], as_json: bool) -> None:
    """Print the published results of a benchmark with local results sorted in.

    DIR is a folder that `skyreward eval` wrote, or a folder that contains several of them.

    Example: skyreward leaderboard rm-bench results/
    """
    from rm_core.benchmarks.registry import BENCHMARKS
    from serve.evaluation.console import print_leaderboard
    from serve.evaluation.leaderboard import build_leaderboard

    rows = build_leaderboard(benchmark, folders)
    if as_json:
        click.echo(dump_json([asdict(row) for row in rows], indent=2))
    else:
        print_leaderboard(BENCHMARKS[benchmark].title, benchmark, rows)


def _load_benchmark(name: str, variants: tuple[str, ...]) -> Any:
    from rm_core.benchmarks.registry import build_benchmark, list_options

    if "help" in variants:
        for option in list_options(name):
            click.echo(f"{option.name}={'|'.join(option.values)}  {option.meaning}")
        sys.exit()
    pairs = [text.partition("=") for text in variants]
    for variant, equals, _ in pairs:
        if not equals:
            raise click.UsageError(
                f"--variant {variant} has no value; give NAME=VALUE, or `help` for a list"
            )
    return build_benchmark(name, **{variant: value for variant, _, value in pairs})


def _build_executor_options(
    models: tuple[str, ...], urls: tuple[str, ...], options: dict[str, Any]
) -> list[Any]:
    from serve.jobs.command import ExecutorOptions

    loading = {option: options[option] for option in LOADING_OPTIONS}
    if urls:
        refuse_with_url(get_given_options(loading))
        return [
            ExecutorOptions(
                {}, urls, alias, *(options[name] for name in ("api_key", "retry_s", "timeout_s"))
            )
            for alias in models or (None,)
        ]
    return [ExecutorOptions({"model": model, **loading}) for model in models]
