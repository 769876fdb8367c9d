"""A benchmark's rows, wherever they are: files in any published form, or the hub.

Reads what `skyreward score` reads. Knows which files of the benchmarks' own repositories are the
benchmark; what is in a row is the benchmark's own business.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rm_core import BenchmarkDataError, RewardError, ScoreError
from rm_core.benchmarks.base import Benchmark, Item, ItemKey
from serve.errors import JobInputError
from serve.jobs.inputs.files import FileSource
from serve.jobs.inputs.formats import of_split
from serve.jobs.inputs.hub import HUB
from serve.jobs.inputs.resolve import open_source

_TOTAL = "total_dataset"
_PARTS_OF_RMB = ("BoN_set", "Pairwise_set")
_SNAPSHOTS = "snapshots"


@dataclass(frozen=True, slots=True)
class Data:
    """What is evaluated on.

    Attributes:
        name: as it was given; of the hub with the commit.
        items: in the order of the rows, each once.
    """

    name: str
    items: tuple[Item, ...]


class _Asked(NamedTuple):
    """What to open.

    Attributes:
        name: path, glob or address.
        split: that was asked for.
        official: the splits that are the benchmark, where there are more.
    """

    name: str
    split: str | None
    official: tuple[str, ...]


def load_data(
    benchmark: Benchmark,
    given: str | None,
    *,
    split: str | None,
    without: Path,
    say: Callable[[str], None],
) -> Data:
    """All items of the data.

    Args:
        benchmark: reads the rows.
        given: file, folder, glob or `hf://` address; None for the benchmark's own sets on the hub.
        split: of a folder or the hub, instead of the official one.
        without: the folder that is written to, which is not of the data even if it is in its
            folder.
        say: tells a person which files are left out.

    Raises:
        BenchmarkDataError: a row is no row of the benchmark, is there twice, or there is none.
        JobInputError: nothing there, or it cannot be read.
    """
    asked = _asked(benchmark, given, split)
    names: list[str] = []
    items: dict[ItemKey, Item] = {}
    places: dict[ItemKey, str] = {}
    for one in asked:
        source = _narrowed(benchmark.name, _open(one, without), one, say)
        names.append(source.name if one.name.startswith(HUB) else one.name)
        for place, item in _items(benchmark, source, _Origins(one.name, source)):
            if item.key in items:
                raise BenchmarkDataError(
                    f"{place}: id {item.id!r} of {item.subset!r} was there before, in "
                    f"{places[item.key]}; give each item once"
                )
            items[item.key] = item
            places[item.key] = place
    if not items:
        raise BenchmarkDataError(f"{', '.join(names)}: there are no rows")
    return Data(", ".join(names), tuple(items.values()))


def _asked(benchmark: Benchmark, given: str | None, split: str | None) -> list[_Asked]:
    if given is not None:
        return [_Asked(given, split, tuple(dict.fromkeys(one.split for one in benchmark.hub)))]
    if not benchmark.hub:
        raise BenchmarkDataError(
            f"{benchmark.title} is not on the hub; get it from where it is published and give the "
            "folder: --data PATH"
        )
    return [
        _Asked(f"{HUB}datasets/{one.repository}", split or one.split, ()) for one in benchmark.hub
    ]


def _open(asked: _Asked, without: Path) -> FileSource:
    try:
        return open_source(asked.name, split=asked.split, without=without)
    except JobInputError:
        if asked.split is None and len(asked.official) == 1:
            # A set with several splits can be read once one is chosen.
            with contextlib.suppress(JobInputError):
                return open_source(asked.name, split=asked.official[0], without=without)
        raise


def _narrowed(
    benchmark: str, source: FileSource, asked: _Asked, say: Callable[[str], None]
) -> FileSource:
    """The files that are the benchmark, where its repository has more beside them."""
    names = {str(file.path): file for file in source.files}
    kept = list(names)
    if benchmark == "rm-bench" and any(_is_total(name) for name in kept):
        # The same rows once more.
        kept = [name for name in kept if not _is_total(name)] or kept
    if benchmark == "rmb":
        parts = [name for name in kept if set(_PARTS_OF_RMB) & set(Path(name).parts)]
        kept = parts or kept
    if asked.split is None and asked.official and len(kept) > 1:
        root = _root(asked.name)
        inside = {os.path.relpath(name, root): name for name in kept}
        official = {name for split in asked.official for name in of_split(list(inside), split)}
        kept = [inside[name] for name in inside if name in official] or kept
    if len(kept) == len(names):
        return source
    left = [os.path.basename(name) for name in names if name not in kept]
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    say(f"not read, since {benchmark} is in other files: {', '.join(left[:3])}{more}")
    return replace(source, files=tuple(names[name] for name in kept))


def _is_total(name: str) -> bool:
    return os.path.basename(name).startswith(_TOTAL)


def _root(name: str) -> str:
    """The folder that a name means, or that all it matches are in."""
    if glob.has_magic(name) and not os.path.exists(name):
        fixed = []
        for part in Path(name).parts:
            if glob.has_magic(part):
                break
            fixed.append(part)
        return os.path.abspath(os.path.join("", *fixed) or ".")
    path = os.path.abspath(name)
    return path if os.path.isdir(path) else os.path.dirname(path)


class _Origins:
    """Paths of files as the benchmark is told them: within what was given, and its own name.

    Args:
        name: as it was given.
        source: what it means.
    """

    def __init__(self, name: str, source: FileSource) -> None:
        self._paths: Mapping[int, str] = {
            index: _origin(name, file.path) for index, file in enumerate(source.files)
        }

    def __getitem__(self, file: int) -> str:
        return self._paths[file]


def _origin(name: str, path: Path) -> str:
    if name.startswith(HUB):
        repository = "/".join(name.removeprefix(HUB + "datasets/").split("/")[:2])
        parts = path.parts
        last = len(parts) - 1 - parts[::-1].index(_SNAPSHOTS) if _SNAPSHOTS in parts else -2
        return "/".join([repository.partition("@")[0], *parts[last + 2 :]])
    root = _root(name)
    return Path(os.path.basename(root), os.path.relpath(path, root)).as_posix()


def _items(
    benchmark: Benchmark, source: FileSource, origins: _Origins
) -> Iterator[tuple[str, Item]]:
    """Every row as an item, with its place."""
    firsts: dict[int, int] = {}
    for row in source.rows():
        number = row.number - firsts.setdefault(row.file, row.number)
        origin = origins[row.file]
        place = f"row {number} of {origin}"
        if isinstance(row.record, ScoreError):
            raise BenchmarkDataError(f"{place}: {row.record.message}")
        try:
            yield place, benchmark.read(row.record, origin)
        except BenchmarkDataError as error:
            raise _placed(error, place, origin) from None


def _placed(error: RewardError, place: str, origin: str) -> BenchmarkDataError:
    rest = error.detail.removeprefix(origin)
    return BenchmarkDataError(f"{place}{rest}" if rest != error.detail else f"{place}: {rest}")
