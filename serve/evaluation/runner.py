"""Items to rewards: one job of `skyreward score`, kept in the folder of the evaluation.

Start at `score_items`. The items are the job's input and its output has their rewards, so a second
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
from serve.jobs.atomic_io import read_regular, write_durably
from serve.jobs.command import Ways
from serve.jobs.executors.base import ModelCarrier, ScoringModel
from serve.jobs.inputs.resolve import open_source
from serve.jobs.job import Job
from serve.jobs.model_options import model_config
from serve.jobs.progress import Progress
from serve.jobs.shutdown import Stopping
from serve.jobs.spec import Plan
from serve.jobs.state import JobFolder
from serve.jobs.summary import Summary

ITEMS = "items.jsonl"
REWARDS = "rewards.jsonl"
SCORED_BY = "scored_by.json"
# Rows hold up to 32 responses: what a stop waits for, and a kill costs, should be little.
_CHUNK_ROWS = 50


@dataclass(frozen=True, slots=True)
class ScoredBy:
    """How the rewards came about.

    Attributes:
        model: that gave them.
        truncation: what was done with longer conversations.
    """

    model: ScoringModel
    truncation: Truncation

    def write(self, path: Path) -> None:
        """Keep it, durably."""
        write_durably(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> ScoredBy | None:
        """What `write` kept; None where it is not there, or not whole."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            plain = json.loads(read_regular(path))
            model = plain["model"]
            fingerprint = Fingerprint(**model.pop("fingerprint"))
            return cls(ScoringModel(fingerprint=fingerprint, **model), plain["truncation"])
        return None


@dataclass(slots=True)
class Rewards:
    """What became of the items.

    Attributes:
        by_key: the rewards of those that have all, in the order of their responses.
        failed: the others that were tried, and why.
        num_truncated: items of which something was cut.
        scored_by: by whom; None where that is not known.
        summary: of the job; None where there was none.
    """

    by_key: dict[ItemKey, list[float]] = field(default_factory=dict)
    failed: dict[ItemKey, ScoreError] = field(default_factory=dict)
    num_truncated: int | None = None
    scored_by: ScoredBy | None = None
    summary: Summary | None = None


@dataclass(frozen=True, slots=True)
class Run:
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
    say: Callable[[str], None]
    progress: Progress
    stopping: Stopping


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
    content = b"".join(item_lines(items))
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return path
        if not overwrite:
            raise EvaluationError(
                f"{folder} has an evaluation of other items; give another folder, or --overwrite "
                "to replace it"
            )
    write_durably(path, content)
    return path


def item_lines(items: Iterable[Item]) -> Iterator[bytes]:
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
            return [_item(json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"the items of the evaluation cannot be read from {path} ({error}); run `skyreward "
            "eval` again, which writes them"
        ) from error


def score_items(items: Path, folder: Path, ways: Ways, run: Run) -> Rewards:
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
    plan = Plan(
        source=open_source(str(items)),
        output=folder / REWARDS,
        truncation=run.truncation,
        chunk_rows=_CHUNK_ROWS,
        overwrite=run.overwrite,
        asked=ways.asked,
    )
    # A model here, or services: both can tell.
    job_folder = JobFolder(plan.output, run.say)
    carrier = cast(ModelCarrier, ways.carrier(job_folder, overwrite=run.overwrite))
    kept = folder / SCORED_BY
    try:
        try:
            job = Job(plan, carrier, run.say, run.progress, run.stopping)
            summary = job.run()
        finally:
            if model := carrier.scoring_model():
                ScoredBy(model, run.truncation).write(kept)
        scored_by = ScoredBy.read(kept)
        if scored_by is None:
            with run.stopping.interrupting(carrier.patience_s is not None):
                model = carrier.scoring_model(ask=True)
            if model:
                scored_by = ScoredBy(model, run.truncation)
                scored_by.write(kept)
    finally:
        carrier.close()
    rewards = _read_rewards(plan.output)
    rewards.scored_by, rewards.summary = scored_by, summary
    return rewards


def with_official_length(ways: Ways, max_length: int | None) -> Ways:
    """The same way with the benchmark's longest length, or the model's own if that is less.

    Args:
        ways: a model here whose own `max_length` may be chosen already, which wins.
        max_length: of the official runs.
    """
    if ways.urls or max_length is None or ways.model.get("max_length") is not None:
        return ways
    positions = open_checkpoint(model_config(**ways.model)).max_positions
    return replace(ways, model={**ways.model, "max_length": min(max_length, positions)})


def alias_of(ways: Ways) -> str | None:
    """The model's name in requests; None where only its service knows."""
    if ways.urls:
        return ways.served
    return ModelSettings.model_validate(ways.model["model"]).alias


def _read_rewards(output: Path) -> Rewards:
    found = Rewards(num_truncated=0)
    for record in _records(output):
        key = (record["id"], record["subset"])
        if error := record.get("error"):
            found.failed[key] = ScoreError(error["code"], error["message"])
        else:
            found.by_key[key] = record["rewards"]
        found.num_truncated = (found.num_truncated or 0) + bool(record.get("truncated"))
    return found


def _records(output: Path) -> Iterator[Mapping[str, Any]]:
    with output.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _item(plain: Mapping[str, Any]) -> Item:
    return Item(
        id=plain["id"],
        subset=plain["subset"],
        prompt=plain["prompt"],
        responses=tuple(plain["responses"]),
        preferences=tuple(Preference(*pair) for pair in plain["preferences"]),
        metadata=plain["facts"],
    )
