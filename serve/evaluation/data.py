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
from serve.jobs.inputs.formats import select_split
from serve.jobs.inputs.hub import HUB_PREFIX
from serve.jobs.inputs.resolve import open_source

_TOTAL = "total_dataset"
_RMB_FOLDERS = ("BoN_set", "Pairwise_set")
_SNAPSHOTS = "snapshots"


@dataclass(frozen=True, slots=True)
class BenchmarkData:
    """What is evaluated on.

    Attributes:
        name: as it was given; of the hub with the commit.
        items: in the order of the rows, each once.
    """

    name: str
    items: tuple[Item, ...]


class _SourceRequest(NamedTuple):
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
    location: str | None,
    *,
    split: str | None,
    exclude: Path,
    notify: Callable[[str], None],
) -> BenchmarkData:
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
    asked = _list_sources(benchmark, location, split)
    names: list[str] = []
    items: dict[ItemKey, Item] = {}
    places: dict[ItemKey, str] = {}
    for one in asked:
        source = _select_files(benchmark.name, _open(one, exclude), one, notify)
        names.append(source.name if one.name.startswith(HUB_PREFIX) else one.name)
        for place, item in _iter_items(benchmark, source, _Origins(one.name, source)):
            if item.key in items:
                raise BenchmarkDataError(
                    f"{place}: id {item.id!r} of {item.subset!r} was there before, in "
                    f"{places[item.key]}; give each item once"
                )
            items[item.key] = item
            places[item.key] = place
    if not items:
        raise BenchmarkDataError(f"{', '.join(names)}: there are no rows")
    return BenchmarkData(", ".join(names), tuple(items.values()))


def _list_sources(
    benchmark: Benchmark, location: str | None, split: str | None
) -> list[_SourceRequest]:
    if location is not None:
        return [
            _SourceRequest(
                location, split, tuple(dict.fromkeys(one.split for one in benchmark.hub))
            )
        ]
    if not benchmark.hub:
        raise BenchmarkDataError(
            f"{benchmark.title} is not on the hub; get it from where it is published and give the "
            "folder: --data PATH"
        )
    return [
        _SourceRequest(f"{HUB_PREFIX}datasets/{one.repository}", split or one.split, ())
        for one in benchmark.hub
    ]


def _open(request: _SourceRequest, exclude: Path) -> FileSource:
    try:
        return open_source(request.name, split=request.split, exclude=exclude)
    except JobInputError:
        if request.split is None and len(request.official) == 1:
            # A set with several splits can be read once one is chosen.
            with contextlib.suppress(JobInputError):
                return open_source(request.name, split=request.official[0], exclude=exclude)
        raise


def _select_files(
    benchmark: str, source: FileSource, request: _SourceRequest, notify: Callable[[str], None]
) -> FileSource:
    """The files that are the benchmark, where its repository has more beside them."""
    names = {str(file.path): file for file in source.files}
    kept = list(names)
    if benchmark == "rm-bench" and any(_is_total(name) for name in kept):
        # The same rows once more.
        kept = [name for name in kept if not _is_total(name)] or kept
    if benchmark == "rmb":
        parts = [name for name in kept if set(_RMB_FOLDERS) & set(Path(name).parts)]
        kept = parts or kept
    if request.split is None and request.official and len(kept) > 1:
        root = _find_root(request.name)
        inside = {os.path.relpath(name, root): name for name in kept}
        official = {
            name for split in request.official for name in select_split(list(inside), split)
        }
        kept = [inside[name] for name in inside if name in official] or kept
    if len(kept) == len(names):
        return source
    left = [os.path.basename(name) for name in names if name not in kept]
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    notify(f"not read, since {benchmark} is in other files: {', '.join(left[:3])}{more}")
    return replace(source, files=tuple(names[name] for name in kept))


def _is_total(name: str) -> bool:
    return os.path.basename(name).startswith(_TOTAL)


def _find_root(name: str) -> str:
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
            index: _get_origin(name, file.path) for index, file in enumerate(source.files)
        }

    def __getitem__(self, file: int) -> str:
        return self._paths[file]


def _get_origin(name: str, path: Path) -> str:
    if name.startswith(HUB_PREFIX):
        repository = "/".join(name.removeprefix(HUB_PREFIX + "datasets/").split("/")[:2])
        parts = path.parts
        last = len(parts) - 1 - parts[::-1].index(_SNAPSHOTS) if _SNAPSHOTS in parts else -2
        return "/".join([repository.partition("@")[0], *parts[last + 2 :]])
    root = _find_root(name)
    return Path(os.path.basename(root), os.path.relpath(path, root)).as_posix()


def _iter_items(
    benchmark: Benchmark, source: FileSource, origins: _Origins
) -> Iterator[tuple[str, Item]]:
    """Every row as an item, with its place."""
    firsts: dict[int, int] = {}
    for row in source.iter_rows():
        number = row.number - firsts.setdefault(row.file, row.number)
        origin = origins[row.file]
        place = f"row {number} of {origin}"
        if isinstance(row.record, ScoreError):
            raise BenchmarkDataError(f"{place}: {row.record.message}")
        try:
            yield place, benchmark.read(row.record, origin)
        except BenchmarkDataError as error:
            raise _add_location(error, place, origin) from None


def _add_location(error: RewardError, location: str, origin: str) -> BenchmarkDataError:
    rest = error.detail.removeprefix(origin)
    return BenchmarkDataError(
        f"{location}{rest}" if rest != error.detail else f"{location}: {rest}"
    )
