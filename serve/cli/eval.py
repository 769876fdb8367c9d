"""The commands `skyreward eval`, `compare-runs`, `leaderboard` and `submission`."""

from __future__ import annotations

import difflib
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
    reward_cache_option,
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


class _BenchmarkName(click.Choice[str]):
    """Name of a benchmark, in any case; the error for another one suggests similar names."""

    def __init__(self) -> None:
        super().__init__(BENCHMARK_NAMES, case_sensitive=False)

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Return the message; see `click.Choice.get_invalid_choice_message`."""
        return super().get_invalid_choice_message(value, ctx) + _suggest_benchmarks(value)


def _suggest_benchmarks(name: str) -> str:
    """Return a sentence with the benchmarks that have a similar name; empty if none has."""
    written = name.casefold().replace("_", "-")
    similar = [one for one in BENCHMARK_NAMES if written and one.startswith(written)]
    similar = similar or difflib.get_close_matches(written, BENCHMARK_NAMES)
    return f" Did you mean {' or '.join(similar)}?" if similar else ""


_benchmark_argument = click.argument("benchmark", type=_BenchmarkName(), metavar="BENCHMARK")
_BENCHMARK_LIST = f"Benchmarks: {', '.join(BENCHMARK_NAMES)}."


@click.command("eval", cls=SingleValueCommand, epilog=_BENCHMARK_LIST)
@_benchmark_argument
@click.option(
    "--data",
    metavar="PATH",
    help="Rows of the benchmark: a file, a folder or a quoted glob in any published form, also at "
    "an address such as hf://datasets/ORG/NAME.  [default: the benchmark's own data sets on the "
    "hub]",
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
@reward_cache_option
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
        for unused in get_given_options(("truncation", "reward_cache", *LOADING_OPTIONS)):
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
            reward_cache=options["reward_cache"],
        )
    )


@click.command("compare-runs", cls=SingleValueCommand)
@click.argument("a", type=click.Path(exists=True, path_type=Path))
@click.argument("b", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--benchmark",
    type=_BenchmarkName(),
    metavar="BENCHMARK",
    help="Benchmark of score files; of folders with several benchmarks, the one to show in detail.",
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
    """Compare two evaluations item by item.

    A and B are folders that `skyreward eval` wrote, or score files in the format of scores.jsonl.
    Of folders with evaluations of several benchmarks, each benchmark that both have is compared;
    the exit code is 3 if two evaluations of a benchmark are not comparable.

    Example: skyreward compare-runs results/base results/tuned
    """
    from serve.evaluation.compare import compare, load_runs, require_scipy
    from serve.evaluation.compare_folders import compare_folders, is_folder_of_several
    from serve.evaluation.console import print_comparison, print_folder_comparison
    from serve.jobs.command import EXIT_PARTIAL

    require_scipy()
    if not (is_folder_of_several(a) or is_folder_of_several(b)):
        comparison = compare(*load_runs((a, b), notify=echo_status, **options))
        if as_json:
            click.echo(dump_json(comparison.to_dict(), indent=2))
        else:
            print_comparison(comparison, show)
        return
    for name in get_given_options(("data", "split")):
        raise click.UsageError(
            f"--{name} is for one benchmark, and a folder with several evaluations was given; give "
            "the folder of one evaluation"
        )
    folders = compare_folders(a, b, benchmark=options["benchmark"], notify=echo_status)
    if as_json:
        click.echo(dump_json(folders.to_dict(), indent=2))
    else:
        for comparison in [*folders.comparisons.values()] if options["benchmark"] else []:
            print_comparison(comparison, show)
        print_folder_comparison(folders)
    sys.exit(EXIT_PARTIAL if folders.refused else 0)


@click.command(cls=SingleValueCommand, epilog=_BENCHMARK_LIST)
@click.argument("names", nargs=-1, metavar="[BENCHMARK...] [DIR...]")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write the tables, with the sections and the provenance of local results, to an "
    "HTML page.",
)
@click.option("--json", "as_json", is_flag=True, help="Plain JSON instead of a table.")
@handle_errors
def leaderboard(names: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Print published results of benchmarks with local results sorted in.

    One BENCHMARK gives its metrics. Several, or `all`, give a table with a column for each; without
    BENCHMARK, those that the folders have. DIR is a folder that `skyreward eval` wrote, or a folder
    that contains several of them; ./NAME is a folder with the name of a benchmark.

    Example: skyreward leaderboard rm-bench results/
    """
    from serve.evaluation.console import print_leaderboard, print_overview
    from serve.evaluation.leaderboard import build_leaderboard, read_local_results
    from serve.evaluation.overview import build_overview, choose_benchmarks

    benchmarks, folders = _split_names(names)
    results = read_local_results(folders)
    shown = choose_benchmarks(benchmarks, results)
    if as_json and len(benchmarks) != 1:
        click.echo(dump_json(build_overview(shown, results).to_dict(), indent=2))
    elif as_json:
        rows = build_leaderboard(shown[0], folders)
        click.echo(dump_json([asdict(row) for row in rows], indent=2))
    elif len(shown) == 1:
        print_leaderboard(shown[0], build_leaderboard(shown[0], folders))
    else:
        print_overview(build_overview(shown, results))
    if output:
        from serve.evaluation.leaderboard_page import write_leaderboard_page

        write_leaderboard_page(output, shown, results)
        echo_status(f"written to {output}")


def _split_names(names: tuple[str, ...]) -> tuple[list[str], list[Path]]:
    """Return the benchmarks and the folders among arguments."""
    benchmarks: list[str] = []
    folders: list[Path] = []
    for name in names:
        if name == "all":
            benchmarks += BENCHMARK_NAMES
        elif name.casefold() in BENCHMARK_NAMES:
            benchmarks.append(name.casefold())
        elif Path(name).is_dir():
            folders.append(Path(name))
        else:
            raise click.UsageError(
                f"{name!r} is neither a folder nor one of the benchmarks "
                f"{', '.join(BENCHMARK_NAMES)}.{_suggest_benchmarks(name)}"
            )
    return list(dict.fromkeys(benchmarks)), folders


@click.command(cls=SingleValueCommand)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o", "--output", required=True, type=_FOLDER, metavar="DIR", help="Folder to write to."
)
@click.option(
    "--name",
    metavar="ORG/NAME",
    help="Name of the model in the submission.  [default: its name in the evaluation, or its id in "
    "the catalogue]",
)
@click.option(
    "--model",
    metavar="NAME",
    help="Local folder or hub id of the model, whose chat template renders the texts of "
    "RewardBench.  [default: texts are messages]",
)
@click.option(
    "--data", metavar="PATH", help="Published rows, which the form of JudgeBench repeats."
)
@handle_errors
def submission(folder: Path, output: Path, **options: Any) -> None:
    """Write an evaluation in the form that a leaderboard takes.

    FOLDER is one that `skyreward eval` wrote: a complete evaluation of rewardbench, rewardbench2,
    rm-bench or judgebench. Nothing is uploaded.

    Example: skyreward submission results/rewardbench --name ORG/NAME -o submission/
    """
    from serve.evaluation.submission import write_submission

    write_submission(folder, output, notify=echo_status, **options)


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
