"""What `skyreward eval` does with its options: items, rewards, figures, files."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_core import Truncation
from rm_core.benchmarks.base import Benchmark, Item, ScoredItem
from serve.errors import EvaluationError, JobStoppedError
from serve.evaluation.artifacts import REPORT, SUMMARY, is_partial, read_summary, write_files
from serve.evaluation.console import print_evaluations
from serve.evaluation.data import Data, load_data
from serve.evaluation.provenance import carried_over, used_of
from serve.evaluation.published import compared
from serve.evaluation.result import Evaluation
from serve.evaluation.runner import (
    Rewards,
    Run,
    alias_of,
    score_items,
    with_official_length,
    write_items,
)
from serve.evaluation.score_files import read_scores
from serve.jobs.command import EXIT_PARTIAL, Ways
from serve.jobs.private_files import require_own_link
from serve.jobs.progress import Progress
from serve.jobs.shutdown import Stopping

Say = Callable[[str], None]
_NOTE = "\nskyreward: stopping after what is in flight; once more to end at once\n"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is evaluated, whatever gives the rewards.

    Attributes:
        benchmark: which one, and in which of its ways.
        data: where its rows are; None for the hub.
        split: of them; None for the official one.
        output: the folder that is written to.
        say: tells a person a line.
    """

    benchmark: Benchmark
    data: str | None
    split: str | None
    output: Path
    say: Say

    def load(self) -> Data:
        """The items; see `load_data`."""
        return load_data(
            self.benchmark, self.data, split=self.split, without=self.output, say=self.say
        )


def evaluate_models(
    asked: Asked, ways: Sequence[Ways], *, truncation: Truncation | None, overwrite: bool
) -> int:
    """Score with each model once, and write what was found; returns the exit code.

    Args:
        asked: what is evaluated.
        ways: one for each model; several have a folder each within the output.
        truncation: of longer conversations; None for the official way.
        overwrite: whether to score afresh what is scored.

    Raises:
        RewardError: the data cannot be read, or a job cannot begin or go on.
    """
    official = asked.benchmark.official_protocol
    ways = [with_official_length(one, official.max_length) for one in ways]
    folders = _folders(asked.output, ways)
    data = asked.load()
    _make_folder(asked.output)
    items = write_items(data.items, asked.output, overwrite=overwrite)
    cut: Truncation = truncation or official.truncation  # type: ignore[assignment]
    gc.freeze()
    evaluations: list[Evaluation] = []
    with Stopping(_NOTE) as stopping, Progress(asked.say) as progress:
        run = Run(cut, overwrite, asked.say, progress, stopping)
        for way, folder in zip(ways, folders, strict=True):
            _make_folder(folder)
            try:
                rewards = score_items(items, folder, way, run)
            except JobStoppedError as error:
                asked.say(f"{error.detail}; run the same command again to go on")
                return stopping.exit_code
            _tell_length(asked, rewards)
            evaluations.append(_evaluated(asked, data, rewards, _names(way, rewards)))
            _write(evaluations[-1], folder)
    return _finished(asked, evaluations)


def evaluate_scores(
    asked: Asked, scores: Path, name: str | None, *, overwrite: bool = False
) -> int:
    """Compute the figures of a file of rewards, and write what was found; returns the exit code.

    Args:
        asked: what is evaluated.
        scores: a `scores.jsonl`.
        name: of the model that gave them, as the catalogue may know it; by default what the
            evaluation says that the file is of, else the file's name.
        overwrite: whether to replace an evaluation of other items.

    Raises:
        RewardError: the data or the file cannot be read, or they do not go together.
    """
    data = asked.load()
    earlier = _earlier(scores, asked.benchmark.name)
    name = name or earlier.get("model") or scores.name.removesuffix(".gz").removesuffix(".jsonl")
    rewards = Rewards(by_key=read_scores(scores, data.items))
    _make_folder(asked.output)
    write_items(data.items, asked.output, overwrite=overwrite)
    evaluation = _evaluated(asked, data, rewards, [name], carried_over(earlier))
    _write(evaluation, asked.output)
    return _finished(asked, [evaluation])


def _make_folder(folder: Path) -> None:
    require_own_link(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _evaluated(
    asked: Asked,
    data: Data,
    rewards: Rewards,
    names: Sequence[str],
    more: Mapping[str, Any] | None = None,
) -> Evaluation:
    scored, failed = [], []
    for item in data.items:
        if item.key in rewards.by_key:
            scored.append(ScoredItem(item, tuple(rewards.by_key[item.key])))
        elif item.key in rewards.failed:
            failed.append((item, rewards.failed[item.key]))
    figures = asked.benchmark.compute_result(scored)
    return Evaluation(
        benchmark=asked.benchmark,
        model=names[0],
        figures=figures,
        scored=tuple(scored),
        failed=tuple(failed),
        used={**used_of(asked.benchmark, data, rewards), **(more or {})},
        compared=compared(asked.benchmark, names, figures),
        summary=rewards.summary,
    )


def _write(evaluation: Evaluation, folder: Path) -> None:
    from serve.evaluation.report import write_report

    write_files(evaluation, folder)
    write_report(folder / REPORT, [evaluation])


def _finished(asked: Asked, evaluations: Sequence[Evaluation]) -> int:
    if len(evaluations) > 1:
        from serve.evaluation.report import write_report

        write_report(asked.output / REPORT, evaluations)
    print_evaluations(evaluations)
    for one in evaluations:
        if is_partial(one):
            asked.say(f"{one.model}: a partial result; {SUMMARY} and {REPORT} say what is missing")
        for item, error in one.failed[:3]:
            asked.say(f"not scored: {_named(item)}: {error.message}")
    asked.say(f"written to {asked.output}")
    return EXIT_PARTIAL if any(one.failed for one in evaluations) else 0


def _tell_length(asked: Asked, rewards: Rewards) -> None:
    assert rewards.scored_by is not None
    model, official = rewards.scored_by.model, asked.benchmark.official_protocol.max_length
    if official is not None and model.max_length != official:
        asked.say(
            f"{model.name} takes at most {model.max_length} tokens, and the official runs at most "
            f"{official}: what is longer may be scored differently"
        )


def _named(item: Item) -> str:
    return f"item {item.id!r} of {item.subset!r}"


def _names(way: Ways, rewards: Rewards) -> list[str]:
    """Of the model: in requests, and as it was asked for."""
    assert rewards.scored_by is not None
    names = [rewards.scored_by.model.name]
    return names if way.urls else [*names, str(way.model["model"])]


def _folders(output: Path, ways: Sequence[Ways]) -> list[Path]:
    if len(ways) == 1:
        return [output]
    aliases = [alias_of(way) or "" for way in ways]
    if len(set(aliases)) < len(aliases):
        twice = next(alias for alias in aliases if aliases.count(alias) > 1)
        raise EvaluationError(
            f"two models are called {twice!r}; give one another name, as ALIAS=NAME"
        )
    short = [alias.rpartition("/")[2] for alias in aliases]
    chosen = short if len(set(short)) == len(short) else [a.replace("/", "--") for a in aliases]
    return [output / name for name in chosen]


def _earlier(scores: Path, benchmark: str) -> dict[str, Any]:
    """The summary beside a file of rewards, if it is of that benchmark."""
    path = scores.parent / SUMMARY
    if not path.is_file():
        return {}
    summary = read_summary(path)
    return summary if summary["benchmark"] == benchmark else {}
