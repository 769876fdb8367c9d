"""Rewards of items: one job of `skyreward score` in the folder of the evaluation.

The entry point is `run_scoring_job`. The items are the job's input, and the job's output has their
rewards. A second run therefore resumes where the first one ended; a finished job scores nothing.

What is scored of an item depends on the kind of the model and on the benchmark: each response as a
conversation, each pair of responses in both orders for a judge, or all responses as the steps of
one solution.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rm_core import Fingerprint, ScoreError, Truncation, open_checkpoint
from rm_core.benchmarks.base import Benchmark, Item, ItemKey, Preference, ScoredItem
from rm_core.config import Kind, StepFormat
from rm_core.kinds import KindChoice, choose_kind
from serve.config.model_settings import ModelSettings
from serve.errors import EvaluationError
from serve.jobs.atomic_io import read_regular_file, write_atomically
from serve.jobs.command import ExecutorOptions, build_model_config
from serve.jobs.executors.base import ScoringModel
from serve.jobs.inputs.image_references import collect_images, refer_to_images
from serve.jobs.inputs.items import InputKind
from serve.jobs.inputs.source import open_source
from serve.jobs.job import Job
from serve.jobs.output import Output
from serve.jobs.progress import Progress
from serve.jobs.spec import JobSpec
from serve.jobs.store import open_store
from serve.jobs.summary import Summary
from serve.shutdown import GracefulShutdown

ITEMS = "items.jsonl"
REWARDS = "rewards.jsonl"
PROVENANCE = "scored_by.json"
# Rows hold up to 32 responses: small chunks keep a stop quick and lose little in a crash.
_CHUNK_ROWS = 50
KIND_NAMES: Mapping[Kind, str] = {
    "classifier": "a classifier",
    "step": "a step model",
    "judge": "a judge",
}


@dataclass(frozen=True, slots=True)
class ScoringProvenance:
    """The provenance of rewards.

    Attributes:
        model: model that produced the rewards.
        truncation: truncation of longer conversations.
    """

    model: ScoringModel
    truncation: Truncation

    def write(self, path: Path) -> None:
        """Write the provenance to a file atomically."""
        write_atomically(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> ScoringProvenance | None:
        """Read a file of `write`; None if the file is missing or incomplete."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            fields = json.loads(read_regular_file(path))
            model = fields["model"]
            fingerprint = Fingerprint(**model.pop("fingerprint"))
            return cls(ScoringModel(fingerprint=fingerprint, **model), fields["truncation"])
        return None


@dataclass(slots=True)
class ItemRewards:
    """The rewards or errors of the items.

    Attributes:
        by_key: each item that has all of its rewards.
        errors: error of each other item that was tried.
        num_truncated: number of items with a truncated conversation; None if unknown.
        provenance: model and truncation of the rewards; None if unknown.
        summary: summary of the job; None without a job.
    """

    by_key: dict[ItemKey, ScoredItem] = field(default_factory=dict)
    errors: dict[ItemKey, ScoreError] = field(default_factory=dict)
    num_truncated: int | None = None
    provenance: ScoringProvenance | None = None
    summary: Summary | None = None


@dataclass(frozen=True, slots=True)
class EvalContext:
    """State shared by all jobs of one command.

    Attributes:
        truncation: truncation of conversations that are too long.
        overwrite: whether to discard existing rewards.
        notify: prints a line for the user.
        progress: progress display.
        shutdown: signals when to stop.
        reward_cache: file of rewards that is kept across jobs.
    """

    truncation: Truncation
    overwrite: bool
    notify: Callable[[str], None]
    progress: Progress
    shutdown: GracefulShutdown
    reward_cache: Path | None = None


def write_items(items: Sequence[Item], folder: Path, *, overwrite: bool) -> Path:
    """Write the items as the input of a job; a file with the same items is left unchanged.

    Args:
        items: items of the benchmark.
        folder: folder of the evaluation.
        overwrite: whether other items may be replaced.

    Raises:
        EvaluationError: the folder has an evaluation of other items.
        OSError: the folder cannot be written to.
    """
    path = folder / ITEMS
    content = b"".join(encode_items(items))
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return path
        if not overwrite:
            raise EvaluationError(
                f"{folder} has an evaluation of other items; give another folder, or use "
                "--overwrite to replace it"
            )
    write_atomically(path, content)
    return path


def encode_items(items: Iterable[Item]) -> Iterator[bytes]:
    """Yield each item as a line of JSON: a group of the job, with the item's other fields.

    Images are written as references: their SHA-256 and size.
    """
    for item in items:
        fields = {
            "id": item.id,
            "subset": item.subset,
            "prompt": refer_to_images(item.prompt),
            "responses": item.responses,
            "preferences": item.preferences,
            "facts": dict(item.metadata),
        }
        yield json.dumps(fields, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_items(path: Path) -> list[Item]:
    """Read a file of `write_items`; images remain references.

    Raises:
        EvaluationError: the file is missing or incomplete.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            return [_parse_item(json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"the items of the evaluation cannot be read from {path} ({error}); run `skyreward "
            "eval` again to write them"
        ) from error


def choose_inputs(
    benchmark: Benchmark, executor_options: ExecutorOptions, folder: Path, *, overwrite: bool
) -> InputKind:
    """Return what is scored of each item, by the kind of the model and the benchmark.

    Args:
        benchmark: benchmark to run.
        executor_options: a local model, or services.
        folder: folder of the job. Services that have scored there are not asked again.
        overwrite: whether to discard existing rewards.

    Raises:
        EvaluationError: the benchmark is not run with models of this kind, not with the step
            format of this model, or not with a model that reads text only.
        RewardError: the model or the service does not exist.
    """
    provenance = None if overwrite else ScoringProvenance.read(folder / PROVENANCE)
    kind, step_format = _find_kind(executor_options, provenance)
    if kind not in benchmark.kinds:
        allowed = " or ".join(KIND_NAMES[one] for one in benchmark.kinds)
        raise EvaluationError(
            f"{benchmark.title} is run with {allowed}, and this model is {KIND_NAMES[kind]}; give "
            "another model or another benchmark"
        )
    if benchmark.official_protocol.has_images and not (
        (executor_options.urls and provenance) or _reads_images(executor_options)
    ):
        raise EvaluationError(
            f"each item of {benchmark.title} has an image, and this model reads text only; give a "
            "model that reads images, such as Skywork/Skywork-VL-Reward-7B, or another benchmark"
        )
    if benchmark.kinds == ("step",):
        _check_step_format(benchmark, step_format)
    if benchmark.kinds == ("step",):
        return "steps"
    return "pairs" if kind == "judge" else "chats"


def run_scoring_job(
    path: Path,
    items: Sequence[Item],
    inputs: InputKind,
    folder: Path,
    executor_options: ExecutorOptions,
    context: EvalContext,
) -> ItemRewards:
    """Score the items that are not scored yet, and return the rewards of all items.

    Args:
        path: file of `write_items`.
        items: the items in it.
        inputs: see `choose_inputs`.
        folder: folder of the job.
        executor_options: a local model, or services.
        context: state shared by the command's jobs.

    Raises:
        JobStoppedError: a stop was requested.
        RewardError: the job cannot start or continue.
    """
    spec = JobSpec(
        source=open_source(str(path)),
        output=Output.parse(folder / REWARDS),
        inputs=inputs,
        truncation=context.truncation,
        follows_protocol=True,
        chunk_rows=_CHUNK_ROWS,
        overwrite=context.overwrite,
        model_spec=executor_options.model_spec,
        reward_cache=context.reward_cache,
        images=collect_images(item.prompt for item in items),
    )
    provenance_path = folder / PROVENANCE
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_store(spec))
        executor = executor_options.build_executor(store)
        stack.callback(executor.close)
        try:
            summary = Job(
                spec, store, executor, context.notify, context.progress, context.shutdown
            ).run()
        finally:
            if model := executor.get_scoring_model():
                ScoringProvenance(model, context.truncation).write(provenance_path)
        provenance = ScoringProvenance.read(provenance_path)
        if provenance is None:
            with context.shutdown.allow_interrupt(executor.drain_timeout_s is not None):
                model = executor.get_scoring_model(fetch=True)
            if model:
                provenance = ScoringProvenance(model, context.truncation)
                provenance.write(provenance_path)
    rewards = _read_rewards(folder / REWARDS, items)
    rewards.provenance, rewards.summary = provenance, summary
    return rewards


def apply_official_length(
    executor_options: ExecutorOptions, max_length: int | None
) -> ExecutorOptions:
    """Return the options with the official maximum length, limited to that of the model.

    Args:
        executor_options: options of an executor; a `max_length` that is already set is kept.
        max_length: maximum length of the official runs in tokens.
    """
    if (
        executor_options.urls
        or max_length is None
        or executor_options.model.get("max_length") is not None
    ):
        return executor_options
    positions = open_checkpoint(build_model_config(**executor_options.model)).max_positions
    return replace(
        executor_options, model={**executor_options.model, "max_length": min(max_length, positions)}
    )


def apply_official_steps(
    executor_options: ExecutorOptions, benchmark: Benchmark
) -> ExecutorOptions:
    """Return the options with the step format of the official runs, if that is not the model's.

    Args:
        executor_options: options of an executor. Those of services are returned as they are, since
            services have their own step format, which `choose_inputs` checks.
        benchmark: benchmark to run.

    Raises:
        EvaluationError: the official runs are those of other models.
    """
    step_format = benchmark.official_protocol.step_format
    if step_format is None or executor_options.urls:
        return executor_options
    choice = _choose_local_kind(executor_options)
    if choice.step_format not in ("skywork", step_format):
        raise EvaluationError(
            f"this variant of {benchmark.title} is how its authors run Skywork's step models, and "
            f"{executor_options.model['model']} is another model; leave the variant out"
        )
    return replace(executor_options, model={**executor_options.model, "step_format": step_format})


def _find_kind(
    executor_options: ExecutorOptions, provenance: ScoringProvenance | None
) -> tuple[Kind, StepFormat | None]:
    if not executor_options.urls:
        choice = _choose_local_kind(executor_options)
        return choice.kind, choice.step_format
    model = provenance.model if provenance else None
    if model is None or (model.kind == "step" and model.step_format is None):
        executor = executor_options.build_executor(None)
        with contextlib.closing(executor):
            model = executor.get_scoring_model(fetch=True)
    assert model
    return model.kind, model.step_format


def _reads_images(executor_options: ExecutorOptions) -> bool:
    if not executor_options.urls:
        return open_checkpoint(build_model_config(**executor_options.model)).vision is not None
    with contextlib.closing(executor_options.build_executor(None)) as executor:
        return "max_image_bytes" in executor.resolve_identity()


def _check_step_format(benchmark: Benchmark, step_format: StepFormat | None) -> None:
    """Refuse PRMBench's step format for other items than its own, and other formats for those.

    Raises:
        EvaluationError: the step format does not fit the variant of the benchmark.
    """
    required = benchmark.official_protocol.step_format
    if required is not None and step_format != required:
        raise EvaluationError(
            f"this variant of {benchmark.title} needs a service with --step-format {required}, and "
            f"this service has the step format {step_format}; start the service with that option, "
            "or leave the variant out"
        )
    if required is None and step_format == "skywork-prmbench":
        raise EvaluationError(
            "the step format skywork-prmbench is for `eval prmbench --variant "
            f"preparation=prmbench`, and this is another run of {benchmark.title}; use the model "
            "with the step format of its authors"
        )


def _choose_local_kind(executor_options: ExecutorOptions) -> KindChoice:
    config = build_model_config(**executor_options.model)
    checkpoint = open_checkpoint(config)
    return choose_kind(config, checkpoint.config, checkpoint.entry)


def get_alias(executor_options: ExecutorOptions) -> str | None:
    """Return the model's alias; None if only its service knows the alias."""
    if executor_options.urls:
        return executor_options.served_model
    return ModelSettings.model_validate(executor_options.model["model"]).alias


def _read_rewards(output: Path, items: Sequence[Item]) -> ItemRewards:
    rewards = ItemRewards(num_truncated=0)
    for item, record in zip(items, _iter_records(output), strict=True):
        if error := record.get("error"):
            rewards.errors[item.key] = ScoreError(error["code"], error["message"])
        else:
            rewards.by_key[item.key] = _read_numbers(item, record)
        rewards.num_truncated = (rewards.num_truncated or 0) + bool(record.get("truncated"))
    return rewards


def _read_numbers(item: Item, record: Mapping[str, Any]) -> ScoredItem:
    """Return an item with the results of its record, see `RowResults.build_columns`."""
    if "log_odds" in record:
        return ScoredItem(item, log_odds=record["log_odds"])
    if "rewards" in record:
        step_rewards = record.get("responses_step_rewards", ())
        return ScoredItem(item, tuple(record["rewards"]), step_rewards=step_rewards)
    return ScoredItem(item, tuple(record["step_rewards"]))


def _iter_records(output: Path) -> Iterator[Mapping[str, Any]]:
    with output.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _parse_item(fields: Mapping[str, Any]) -> Item:
    return Item(
        id=fields["id"],
        subset=fields["subset"],
        prompt=fields["prompt"],
        responses=tuple(fields["responses"]),
        preferences=tuple(Preference(*pair) for pair in fields["preferences"]),
        metadata=fields["facts"],
    )
