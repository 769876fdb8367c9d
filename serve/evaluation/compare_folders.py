"""Comparison of two folders that have evaluations of several benchmarks each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_core.benchmarks.registry import BENCHMARKS
from serve.errors import EvaluationError
from serve.evaluation.compare import RunComparison, compare, load_runs
from serve.evaluation.files import SUMMARY, find_evaluations, read_summary


@dataclass(frozen=True, slots=True)
class FolderComparison:
    """The comparison of two folders.

    Attributes:
        paths: the folders as given on the command line.
        comparisons: comparisons by benchmark.
        refused: why two runs of a benchmark are not comparable, by benchmark.
        only: benchmarks that only the first and only the second folder has.
    """

    paths: tuple[str, str]
    comparisons: Mapping[str, RunComparison]
    refused: Mapping[str, str]
    only: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def names(self) -> tuple[str, str]:
        """Names of the models, or the folders if a folder has several or both have the same."""
        models = [{one.runs[index].name for one in self.comparisons.values()} for index in (0, 1)]
        if models[0] != models[1] and all(len(one) == 1 for one in models):
            return next(iter(models[0])), next(iter(models[1]))
        return self.paths

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON data."""
        return {
            "benchmarks": {name: one.to_dict() for name, one in self.comparisons.items()},
            "not_comparable": dict(self.refused),
            "only_first": list(self.only[0]),
            "only_second": list(self.only[1]),
        }


def is_folder_of_several(path: Path) -> bool:
    """Return whether a path is a folder that is not itself an evaluation."""
    return path.is_dir() and not (path / SUMMARY).is_file()


def find_runs(path: Path, benchmark: str | None) -> dict[str, Path]:
    """Return the evaluations of a folder by benchmark.

    Args:
        path: folder of several evaluations, or an evaluation.
        benchmark: name of the only benchmark that is wanted; None for all.

    Raises:
        EvaluationError: two evaluations are of one benchmark, or none is of the wanted one.
    """
    if path.is_file():
        raise EvaluationError(
            f"{path} is a file, and the other run is a folder of several evaluations; give two "
            "folders, or the folder of one evaluation"
        )
    found: dict[str, Path] = {}
    for folder in find_evaluations(path) if is_folder_of_several(path) else [path]:
        name = read_summary(folder)["benchmark"]
        if benchmark not in (None, name):
            continue
        if name in found:
            raise EvaluationError(
                f"{path} has two evaluations of {name}: {found[name]} and {folder}; give a folder "
                "that has one evaluation of each benchmark, such as the folder of one model"
            )
        found[name] = folder
    if not found:
        raise EvaluationError(f"{path} has no evaluation of {benchmark}; leave out --benchmark")
    return {name: found[name] for name in BENCHMARKS if name in found}


def compare_folders(
    a: Path, b: Path, *, benchmark: str | None, notify: Callable[[str], None]
) -> FolderComparison:
    """Compare every benchmark of which both folders have an evaluation.

    Args:
        a: first folder.
        b: second folder.
        benchmark: name of the only benchmark to compare; None for all.
        notify: prints a line for the user.

    Raises:
        EvaluationError: a folder has two evaluations of a benchmark, or the folders have no
            benchmark in common.
    """
    first, second = (find_runs(path, benchmark) for path in (a, b))
    common = [name for name in first if name in second]
    if not common:
        raise EvaluationError(
            f"{a} and {b} have no benchmark in common: the first has {', '.join(first)}, the "
            f"second {', '.join(second)}"
        )
    comparisons, refused = {}, {}
    for name in common:
        if len(common) > 1:
            notify(f"comparing {name}")
        try:
            runs = load_runs(
                (first[name], second[name]), benchmark=None, data=None, split=None, notify=notify
            )
            comparisons[name] = compare(*runs)
        except EvaluationError as error:
            refused[name] = error.detail
    return FolderComparison(
        (str(a), str(b)),
        comparisons,
        refused,
        (
            tuple(name for name in first if name not in second),
            tuple(name for name in second if name not in first),
        ),
    )
