"""The command `skyreward eval`: load items, get rewards, compute results, write files."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_core import TemplateError, Truncation
from rm_core.benchmarks.base import Benchmark
from rm_core.benchmarks.registry import build_benchmark
from serve.errors import EvaluationError, JobStoppedError
from serve.evaluation.console import print_evaluations
from serve.evaluation.data import BenchmarkData, load_data, load_published_rewards
from serve.evaluation.files import (
    REPORT,
    SUMMARY,
    is_partial,
    read_summary,
    write_files,
)
from serve.evaluation.published_results import compare_with_published
from serve.evaluation.report import shorten_names, write_report
from serve.evaluation.result import Evaluation, collect_provenance, inherit_provenance
from serve.evaluation.runner import (
    KIND_NAMES,
    EvalContext,
    ItemRewards,
    apply_official_length,
    apply_official_steps,
    choose_inputs,
    get_alias,
    run_scoring_job,
    write_items,
)
from serve.evaluation.scores import read_scores
from serve.jobs.atomic_io import reject_foreign_link
from serve.jobs.command import EXIT_PARTIAL, ExecutorOptions
from serve.jobs.progress import Progress
from serve.shutdown import GracefulShutdown

StatusCallback = Callable[[str], None]
# Of what a result lacks, and of items that were not scored.
_MAX_SHOWN = 3
_NOTE = "\nskyreward: stopping after the work in flight; interrupt again to stop immediately\n"


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """The data and the output of an evaluation, independent of the source of the rewards.

    Attributes:
        benchmark: benchmark with its options.
        data: location of the benchmark's rows; None for the hub.
        split: split of the data; None for the official split.
        output: folder to write to.
        notify: prints a line for the user.
    """

    benchmark: Benchmark
    data: str | None
    split: str | None
    output: Path
    notify: StatusCallback

    def load(self) -> BenchmarkData:
        """Load the items; see `load_data`."""
        return load_data(
            self.benchmark, self.data, split=self.split, exclude=self.output, notify=self.notify
        )


def evaluate_models(
    request: EvalRequest,
    executor_options: Sequence[ExecutorOptions],
    *,
    truncation: Truncation | None,
    overwrite: bool,
    reward_cache: Path | None = None,
) -> int:
    """Score the items with each model, write the results and return the exit code.

    Args:
        request: data and output of the evaluation.
        executor_options: options of each model's executor. Several models get a folder each
            within the output.
        truncation: truncation of longer conversations; None for that of the official runs.
        overwrite: whether to discard existing rewards.
        reward_cache: file of rewards that is kept across jobs.

    Raises:
        RewardError: the data cannot be read, or a job cannot start or continue.
    """
    official = request.benchmark.official_protocol
    executor_options = [
        apply_official_steps(apply_official_length(one, official.max_length), request.benchmark)
        for one in executor_options
    ]
    folders = _choose_folders(request.output, executor_options)
    inputs = [
        choose_inputs(request.benchmark, options, folder, overwrite=overwrite)
        for options, folder in zip(executor_options, folders, strict=True)
    ]
    data = request.load()
    _make_folder(request.output)
    path = write_items(data.items, request.output, overwrite=overwrite)
    applied_truncation: Truncation = truncation or official.truncation  # type: ignore[assignment]
    gc.freeze()
    evaluations: list[Evaluation] = []
    with GracefulShutdown(_NOTE) as shutdown, Progress(request.notify) as progress:
        context = EvalContext(
            applied_truncation, overwrite, request.notify, progress, shutdown, reward_cache
        )
        for options, folder, kind in zip(executor_options, folders, inputs, strict=True):
            _make_folder(folder)
            try:
                rewards = run_scoring_job(path, data.items, kind, folder, options, context)
            except JobStoppedError as error:
                request.notify(f"{error.detail}; run the same command again to continue")
                return shutdown.exit_code
            _warn_about_length(request, rewards)
            evaluations.append(
                _build_evaluation(request, data, rewards, _get_model_names(options, rewards))
            )
            _write(evaluations[-1], folder)
    return _finish(request, evaluations)


def evaluate_scores(
    request: EvalRequest, scores: Path, name: str | None, *, overwrite: bool = False
) -> int:
    """Compute the results of a file of rewards, write them and return the exit code.

    Args:
        request: data and output of the evaluation.
        scores: a `scores.jsonl`; without data, also a result file of the benchmark's authors,
            which gives the items too.
        name: name of the model that produced the rewards, such as its name in the catalogue. The
            default is the model in the `summary.json` next to the file, or the file's name.
        overwrite: whether to replace an evaluation of other items.

    Raises:
        RewardError: the data or the file cannot be read, or they do not match.
    """
    published = load_published_rewards(request.benchmark, scores) if not request.data else []
    data = (
        BenchmarkData(str(scores), tuple(one.item for one in published))
        if published
        else request.load()
    )
    earlier = _read_earlier_summary(scores, request.benchmark.name)
    name = name or earlier.get("model") or scores.name.removesuffix(".gz").removesuffix(".jsonl")
    rewards = ItemRewards(
        by_key={one.item.key: one for one in published}
        or read_scores(scores, data.items, request.benchmark)
    )
    _make_folder(request.output)
    write_items(data.items, request.output, overwrite=overwrite)
    evaluation = _build_evaluation(request, data, rewards, [name], inherit_provenance(earlier))
    _write(evaluation, request.output)
    return _finish(request, [evaluation])


def _make_folder(folder: Path) -> None:
    reject_foreign_link(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _build_evaluation(
    request: EvalRequest,
    data: BenchmarkData,
    rewards: ItemRewards,
    names: Sequence[str],
    more: Mapping[str, Any] | None = None,
) -> Evaluation:
    scored, failed = [], []
    for item in data.items:
        if item.key in rewards.by_key:
            scored.append(rewards.by_key[item.key])
        elif item.key in rewards.errors:
            failed.append((item, rewards.errors[item.key]))
    result = request.benchmark.compute_result(scored)
    return Evaluation(
        benchmark=request.benchmark,
        model=names[0],
        result=result,
        scored_items=tuple(scored),
        failed_items=tuple(failed),
        provenance={**collect_provenance(request.benchmark, data, rewards), **(more or {})},
        comparisons=compare_with_published(request.benchmark, names, result),
        summary=rewards.summary,
    )


def _write(evaluation: Evaluation, folder: Path) -> None:
    write_files(evaluation, folder)
    write_report(folder / REPORT, [evaluation])


def _finish(request: EvalRequest, evaluations: Sequence[Evaluation]) -> int:
    if len(evaluations) > 1:
        write_report(request.output / REPORT, evaluations)
    print_evaluations(evaluations)
    for evaluation in evaluations:
        if is_partial(evaluation):
            request.notify(
                f"{evaluation.model}: a partial result; {SUMMARY} and {REPORT} list what is missing"
            )
            for phrase in evaluation.result.missing[:_MAX_SHOWN]:
                request.notify(f"missing: {phrase}")
            if num_others := len(evaluation.result.missing[_MAX_SHOWN:]):
                request.notify(f"missing: {num_others} more")
        for item, error in evaluation.failed_items[:_MAX_SHOWN]:
            request.notify(f"not scored: {item.label}: {error.message}")
        _explain_refusals(request, evaluation)
    request.notify(f"written to {request.output}")
    return EXIT_PARTIAL if any(evaluation.failed_items for evaluation in evaluations) else 0


def _explain_refusals(request: EvalRequest, evaluation: Evaluation) -> None:
    """Name the variants of items that the model's chat template refuses, which may be the cause."""
    codes = [error.code for _, error in evaluation.failed_items]
    official = build_benchmark(request.benchmark.name).options.to_dict()
    variants = [
        f"--variant {name}={value}"
        for name, value in request.benchmark.options.to_dict().items()
        if value != official[name]
    ]
    if variants and (num_refused := codes.count(TemplateError.code)):
        request.notify(
            f"the chat template of {evaluation.model} refused {num_refused:,} items with "
            f"{' '.join(variants)}; leave that out, or give a model whose template allows them"
        )


def _warn_about_length(request: EvalRequest, rewards: ItemRewards) -> None:
    assert rewards.provenance is not None
    model, official = rewards.provenance.model, request.benchmark.official_protocol.max_length
    if official is not None and model.max_length != official:
        effect = (
            "longer conversations may get other rewards"
            if model.kind == "classifier"
            else f"{KIND_NAMES[model.kind]} truncates nothing, so longer items are not scored"
        )
        request.notify(
            f"{model.name} takes at most {model.max_length} tokens, but the official runs take at "
            f"most {official}: {effect}"
        )


def _get_model_names(executor_options: ExecutorOptions, rewards: ItemRewards) -> list[str]:
    """Return the model's names: its alias and, for a local model, its source."""
    assert rewards.provenance is not None
    names = [rewards.provenance.model.name]
    return names if executor_options.urls else [*names, str(executor_options.model["model"])]


def _choose_folders(output: Path, executor_options: Sequence[ExecutorOptions]) -> list[Path]:
    if len(executor_options) == 1:
        return [output]
    aliases = [get_alias(options) or "" for options in executor_options]
    if len(set(aliases)) < len(aliases):
        duplicate = next(alias for alias in aliases if aliases.count(alias) > 1)
        raise EvaluationError(
            f"two models have the name {duplicate!r}; rename one of them with ALIAS=NAME"
        )
    return [output / name.replace("/", "--") for name in shorten_names(aliases)]


def _read_earlier_summary(scores: Path, benchmark: str) -> dict[str, Any]:
    """Return the summary next to a file of rewards; empty if it is of another benchmark."""
    path = scores.parent / SUMMARY
    if not path.is_file():
        return {}
    summary = read_summary(path)
    return summary if summary["benchmark"] == benchmark else {}
