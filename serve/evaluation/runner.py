"""Items to rewards: one job of `skyreward score`, kept in the folder of the evaluation.

Start at `run_scoring_job`. The items are the job's input and its output has their rewards, so a second
start goes on where the first one ended, and one that is done scores nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from rm_core import Fingerprint, ScoreError, Truncation, open_checkpoint
from rm_core.benchmarks.base import Item, ItemKey, Preference
from serve.config.model_settings import ModelSettings
from serve.errors import EvaluationError
from serve.jobs.atomic_io import read_regular_file, write_atomically
from serve.jobs.command import ExecutorOptions
from serve.jobs.executors.base import ModelExecutor, ScoringModel
from serve.jobs.inputs.resolve import open_source
from serve.jobs.job import Job
from serve.jobs.model_options import build_model_config
from serve.jobs.progress import Progress
from serve.jobs.shutdown import GracefulShutdown
from serve.jobs.spec import JobSpec
from serve.jobs.state import JobFolder
from serve.jobs.summary import Summary

ITEMS = "items.jsonl"
REWARDS = "rewards.jsonl"
PROVENANCE = "scored_by.json"
# Rows hold up to 32 responses: what a stop waits for, and a kill costs, should be little.
_CHUNK_ROWS = 50


@dataclass(frozen=True, slots=True)
class ScoringProvenance:
    """How the rewards came about.

    Attributes:
        model: that gave them.
        truncation: what was done with longer conversations.
    """

    model: ScoringModel
    truncation: Truncation

    def write(self, path: Path) -> None:
        """Keep it, durably."""
        write_atomically(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> ScoringProvenance | None:
        """What `write` kept; None where it is not there, or not whole."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            plain = json.loads(read_regular_file(path))
            model = plain["model"]
            fingerprint = Fingerprint(**model.pop("fingerprint"))
            return cls(ScoringModel(fingerprint=fingerprint, **model), plain["truncation"])
        return None


@dataclass(slots=True)
class ItemRewards:
    """What became of the items.

    Attributes:
        by_key: the rewards of those that have all, in the order of their responses.
        failed: the others that were tried, and why.
        num_truncated: items of which something was cut.
        scored_by: by whom; None where that is not known.
        summary: of the job; None where there was none.
    """

    by_key: dict[ItemKey, list[float]] = field(default_factory=dict)
    errors: dict[ItemKey, ScoreError] = field(default_factory=dict)
    num_truncated: int | None = None
    provenance: ScoringProvenance | None = None
    summary: Summary | None = None


@dataclass(frozen=True, slots=True)
class EvalContext:
    """What all jobs of one command share.

    Attributes:
        truncation: what to do with what is too long.
        overwrite: whether to start afresh.
        say: tells a person a line.
        progress: shows how far it is.
        stopping: says when to stop.
    """

    truncation: Truncation
    overwrite: bool
    notify: Callable[[str], None]
    progress: Progress
    shutdown: GracefulShutdown


def write_items(items: Sequence[Item], folder: Path, *, overwrite: bool) -> Path:
    """Keep the items as the input of a job; a file that holds them already stays as it is.

    Args:
        items: of the benchmark.
        folder: of the evaluation.
        overwrite: whether other items may be replaced.

    Raises:
        EvaluationError: the folder has the evaluation of other items.
        OSError: the folder cannot be written to.
    """
    path = folder / ITEMS
    content = b"".join(encode_items(items))
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return path
        if not overwrite:
            raise EvaluationError(
                f"{folder} has an evaluation of other items; give another folder, or --overwrite "
                "to replace it"
            )
    write_atomically(path, content)
    return path


def encode_items(items: Iterable[Item]) -> Iterator[bytes]:
    """Each item as a line of JSON: a group of the job, and all else that makes it an item."""
    for item in items:
        plain = {
            "id": item.id,
            "subset": item.subset,
            "prompt": item.prompt,
            "responses": item.responses,
            "preferences": item.preferences,
            "facts": dict(item.metadata),
        }
        yield json.dumps(plain, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_items(path: Path) -> list[Item]:
    """What `write_items` kept.

    Raises:
        EvaluationError: it is not there, or not whole.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            return [_parse_item(json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"the items of the evaluation cannot be read from {path} ({error}); run `skyreward "
            "eval` again, which writes them"
        ) from error


def run_scoring_job(
    items: Path, folder: Path, executor_options: ExecutorOptions, context: EvalContext
) -> ItemRewards:
    """Score what is left of the items; returns the rewards of all of them.

    Args:
        items: of `write_items`.
        folder: where the job is kept.
        ways: a model here, or services.
        run: how.

    Raises:
        JobStoppedError: it was asked to stop.
        RewardError: it cannot begin or go on.
    """
    plan = JobSpec(
        source=open_source(str(items)),
        output=folder / REWARDS,
        truncation=context.truncation,
        chunk_rows=_CHUNK_ROWS,
        overwrite=context.overwrite,
        model_spec=executor_options.model_spec,
    )
    # A model here, or services: both can tell.
    job_folder = JobFolder(plan.output, context.notify)
    carrier = cast(
        ModelExecutor, executor_options.build_executor(job_folder, overwrite=context.overwrite)
    )
    kept = folder / PROVENANCE
    try:
        try:
            job = Job(plan, carrier, context.notify, context.progress, context.shutdown)
            summary = job.run()
        finally:
            if model := carrier.get_scoring_model():
                ScoringProvenance(model, context.truncation).write(kept)
        scored_by = ScoringProvenance.read(kept)
        if scored_by is None:
            with context.shutdown.allow_interrupt(carrier.drain_timeout_s is not None):
                model = carrier.get_scoring_model(fetch=True)
            if model:
                scored_by = ScoringProvenance(model, context.truncation)
                scored_by.write(kept)
    finally:
        carrier.close()
    rewards = _read_rewards(plan.output)
    rewards.provenance, rewards.summary = scored_by, summary
    return rewards


def apply_official_length(
    executor_options: ExecutorOptions, max_length: int | None
) -> ExecutorOptions:
    """The same way with the benchmark's longest length, or the model's own if that is less.

    Args:
        ways: a model here whose own `max_length` may be chosen already, which wins.
        max_length: of the official runs.
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


def get_alias(executor_options: ExecutorOptions) -> str | None:
    """The model's name in requests; None where only its service knows."""
    if executor_options.urls:
        return executor_options.served_model
    return ModelSettings.model_validate(executor_options.model["model"]).alias


def _read_rewards(output: Path) -> ItemRewards:
    found = ItemRewards(num_truncated=0)
    for record in _iter_records(output):
        key = (record["id"], record["subset"])
        if error := record.get("error"):
            found.errors[key] = ScoreError(error["code"], error["message"])
        else:
            found.by_key[key] = record["rewards"]
        found.num_truncated = (found.num_truncated or 0) + bool(record.get("truncated"))
    return found


def _iter_records(output: Path) -> Iterator[Mapping[str, Any]]:
    with output.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _parse_item(plain: Mapping[str, Any]) -> Item:
    return Item(
        id=plain["id"],
        subset=plain["subset"],
        prompt=plain["prompt"],
        responses=tuple(plain["responses"]),
        preferences=tuple(Preference(*pair) for pair in plain["preferences"]),
        metadata=plain["facts"],
    )
