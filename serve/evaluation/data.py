"""Loading of a benchmark's items from files in any published form, or from the hub.

Reads the formats that `skyreward score` reads, and selects the files of the benchmarks' own
repositories that belong to the benchmark. The benchmark itself parses the rows.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rm_core import BenchmarkDataError, RewardError, ScoreError
from rm_core.benchmarks.base import (
    Benchmark,
    BenchmarkWithPublishedRewards,
    Item,
    ItemKey,
    JoinedBenchmark,
    ScoredItem,
)
from rm_core.text import format_names
from serve.errors import JobInputError
from serve.evaluation.images import load_images
from serve.jobs.inputs.folders import HUB_PREFIX, select_split
from serve.jobs.inputs.source import FileSource, open_source
from serve.jobs.storage import LocalFile, get_fixed_folder, strip_secrets

_TOTAL = "total_dataset"
_RMB_FOLDERS = ("BoN_set", "Pairwise_set")
_PAIRWISE = "pairwise"
_SNAPSHOTS = "snapshots"
_TRANSLATION = "translation"


@dataclass(frozen=True, slots=True)
class BenchmarkData:
    """The items of a benchmark.

    Attributes:
        name: location of the data as given; a hub address includes the commit.
        items: items in the order of the rows, without duplicates.
    """

    name: str
    items: tuple[Item, ...]


class _SourceRequest(NamedTuple):
    """A source to open.

    Attributes:
        name: path, glob or address.
        split: requested split.
        official: official splits of the benchmark, for data with further splits.
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
    """Load all items of the data.

    Args:
        benchmark: benchmark that parses the rows.
        location: path or address of a file, a folder or a glob; None for the benchmark's own data
            sets on the hub.
        split: split of a folder or of the hub, instead of the official split.
        exclude: output folder, which is excluded if it is within the data's folder.
        notify: prints a line for the user about files that are left out.

    Raises:
        BenchmarkDataError: a row has the wrong schema or is duplicated, or the data has no rows.
        JobInputError: the location does not exist or cannot be read.
    """
    names: list[str] = []
    items: dict[ItemKey, Item] = {}
    locations: dict[ItemKey, str] = {}
    for request in _list_sources(benchmark, location, split):
        source = _select_files(benchmark.name, _open(request, LocalFile(exclude)), request, notify)
        is_on_hub = request.name.startswith(HUB_PREFIX)
        names.append(source.name if is_on_hub else strip_secrets(request.name))
        origins = _Origins(request.name, source)
        for row_location, item in _iter_items(benchmark, source, origins):
            if item.key in items and benchmark.official_protocol.keeps_first:
                continue
            if item.key in items and isinstance(benchmark, JoinedBenchmark):
                try:
                    items[item.key] = benchmark.join(items[item.key], item)
                except BenchmarkDataError as error:
                    raise BenchmarkDataError(f"{row_location}: {error.detail}") from None
                continue
            if benchmark.official_protocol.numbers_repeats:
                item = _number_repeat(item, items)
            if item.key in items:
                raise BenchmarkDataError(
                    f"{row_location}: id {item.id!r} of {item.subset!r} was already in "
                    f"{locations[item.key]}; give each item once"
                )
            items[item.key] = item
            locations[item.key] = row_location
    if not items:
        raise BenchmarkDataError(
            f"{', '.join(names)} has no rows; give a file or a folder with rows"
        )
    return BenchmarkData(", ".join(names), tuple(items.values()))


def load_published_rewards(benchmark: Benchmark, path: Path) -> list[ScoredItem]:
    """Load the items and the rewards of a result file of the benchmark's authors.

    Returns:
        The items in the order of the rows; none for a benchmark without such files, and for a
        file whose first row is something else, such as a `scores.jsonl`.

    Raises:
        BenchmarkDataError: a row has the wrong schema.
        JobInputError: the file cannot be read.
    """
    scored: list[ScoredItem] = []
    if not isinstance(benchmark, BenchmarkWithPublishedRewards):
        return scored
    for row in open_source(str(path)).iter_rows():
        location = f"row {row.number} of {path.name}"
        if isinstance(row.record, ScoreError):
            raise BenchmarkDataError(f"{location}: {row.record.message}")
        one = benchmark.read_published_rewards(row.record, row.number, path.name)
        if one is None and not scored:
            break
        if one is None:
            raise BenchmarkDataError(f"{location}: the row has other columns than the first one")
        scored.append(one)
    return scored


def _number_repeat(item: Item, items: Mapping[ItemKey, Item]) -> Item:
    """Return an item with another id if its key is that of items with other texts."""
    numbered = item
    for number in itertools.count(2):
        earlier = items.get(numbered.key)
        if earlier is None or (earlier.prompt, sorted(earlier.responses, key=repr)) == (
            item.prompt,
            sorted(item.responses, key=repr),
        ):
            break
        numbered = replace(item, id=f"{item.id}#{number}")
    return numbered


def _list_sources(
    benchmark: Benchmark, location: str | None, split: str | None
) -> list[_SourceRequest]:
    if location is not None:
        official = tuple(dict.fromkeys(one.split for one in benchmark.hub))
        return [_SourceRequest(location, split, official)]
    if not benchmark.hub:
        raise BenchmarkDataError(
            f"{benchmark.title} is not on the hub; download it from its publisher and give the "
            "folder with --data PATH"
        )
    return [
        _SourceRequest(f"{HUB_PREFIX}datasets/{one.repository}", split or one.split, ())
        for one in benchmark.hub
    ]


def _open(request: _SourceRequest, exclude: LocalFile) -> FileSource:
    try:
        return open_source(request.name, split=request.split, exclude=exclude)
    except JobInputError:
        if request.split is None and len(request.official) == 1:
            # A data set with several splits can be read only with a split selected.
            with contextlib.suppress(JobInputError):
                return open_source(request.name, split=request.official[0], exclude=exclude)
        raise


def _select_files(
    benchmark: str, source: FileSource, request: _SourceRequest, notify: Callable[[str], None]
) -> FileSource:
    """Return the source with only the benchmark's files, if its repository has further files."""
    names = {file.path: file for file in source.files}
    kept = list(names)
    if benchmark == "rm-bench" and any(_is_total(name) for name in kept):
        # `total_dataset` repeats the rows of the other files.
        kept = [name for name in kept if not _is_total(name)] or kept
    if benchmark == "rewardmath":
        # The file of pairs repeats the solutions.
        kept = [name for name in kept if _PAIRWISE not in os.path.basename(name)] or kept
    if benchmark == "m-rewardbench":
        # The pairs of translations are another task.
        kept = [name for name in kept if _TRANSLATION not in Path(name).parts] or kept
    if benchmark == "rmb":
        in_folders = [name for name in kept if set(_RMB_FOLDERS) & set(Path(name).parts)]
        kept = in_folders or kept
    if request.split is None and request.official and len(kept) > 1:
        root = _find_root(request.name, source)
        relative = {os.path.relpath(name, root): name for name in kept}
        official = {
            name for split in request.official for name in select_split(list(relative), split)
        }
        kept = [relative[name] for name in relative if name in official] or kept
    if len(kept) == len(names):
        return source
    skipped = [os.path.basename(name) for name in names if name not in kept]
    notify(f"not read, since {benchmark} is in other files: {format_names(skipped, 3)}")
    return replace(source, files=tuple(names[name] for name in kept))


def _is_total(name: str) -> bool:
    return os.path.basename(name).startswith(_TOTAL)


def _find_root(name: str, source: FileSource) -> str:
    """Return the folder of a path or an address, or the fixed leading folder of a glob."""
    if "://" in name:
        folder = source.name.rstrip("/")
        is_folder = all(file.path.startswith(f"{folder}/") for file in source.files)
        return folder if is_folder else get_fixed_folder(folder).rstrip("/")
    path = os.path.abspath(name)
    if glob.has_magic(name) and not os.path.exists(name):
        return get_fixed_folder(path).rstrip("/") or "/"
    return path if os.path.isdir(path) else os.path.dirname(path)


class _Origins:
    """Paths of files as passed to the benchmark: relative to the location, after its name.

    Args:
        name: location as given.
        source: source at the location.
    """

    def __init__(self, name: str, source: FileSource) -> None:
        self._paths: Mapping[int, str] = {
            index: _get_origin(name, source, Path(file.path))
            for index, file in enumerate(source.files)
        }

    def __getitem__(self, file: int) -> str:
        return self._paths[file]


def _get_origin(name: str, source: FileSource, path: Path) -> str:
    if name.startswith(HUB_PREFIX):
        repository = "/".join(name.removeprefix(HUB_PREFIX + "datasets/").split("/")[:2])
        parts = path.parts
        last = len(parts) - 1 - parts[::-1].index(_SNAPSHOTS) if _SNAPSHOTS in parts else -2
        return "/".join([repository.partition("@")[0], *parts[last + 2 :]])
    root = _find_root(name, source)
    return Path(os.path.basename(root), os.path.relpath(path, root)).as_posix()


def _iter_items(
    benchmark: Benchmark, source: FileSource, origins: _Origins
) -> Iterator[tuple[str, Item]]:
    """Yield the location and the item of every row."""
    first_numbers: dict[int, int] = {}
    for row in source.iter_rows():
        number = row.number - first_numbers.setdefault(row.file, row.number)
        origin = origins[row.file]
        location = f"row {number} of {origin}"
        if isinstance(row.record, ScoreError):
            raise BenchmarkDataError(f"{location}: {row.record.message}")
        try:
            item = benchmark.read(row.record, origin)
            yield location, load_images(item, source.files[row.file].location.local_path)
        except BenchmarkDataError as error:
            raise _add_location(error, location, origin) from None


def _add_location(error: RewardError, location: str, origin: str) -> BenchmarkDataError:
    detail = error.detail.removeprefix(origin)
    return BenchmarkDataError(
        f"{location}{detail}" if detail != error.detail else f"{location}: {detail}"
    )
