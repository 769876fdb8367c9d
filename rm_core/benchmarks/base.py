"""What all benchmarks have in common: items, their rewards, and the figures made of them.

A benchmark is a pure function from rewards to figures. Where rewards come from, how files are read
and how figures are shown is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from rm_core.benchmarks.variants import BenchmarkOptions
from rm_core.inputs.conversations import Messages

ItemKey = tuple[str, str]
"""`id` and `subset` of an item, which together are there once."""


class Preference(NamedTuple):
    """Two responses of an item, one of which is known to be better.

    Attributes:
        better: its place among the responses.
        worse: as `better`.
    """

    better: int
    worse: int


@dataclass(frozen=True, slots=True)
class Item:
    """One row of a benchmark.

    Attributes:
        id: as in the data.
        subset: as in `scores.jsonl`.
        prompt: the messages that are answered.
        responses: answers, in the order of `rewards` in `scores.jsonl`.
        preferences: every pair of answers that the benchmark knows the better one of; a tie, if the
            row has one, is in none.
        facts: what else figures need: a category, a label, a goal. Items of equal `cluster` belong
            together: a figure is of all of them.
    """

    id: str
    subset: str
    prompt: Messages
    responses: tuple[str, ...]
    preferences: tuple[Preference, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> ItemKey:
        """What a line of `scores.jsonl` is matched by."""
        return self.id, self.subset


class ScoredItem(NamedTuple):
    """An item and the raw reward of each of its responses, in order; all finite."""

    item: Item
    rewards: Sequence[float]


class ItemScore(NamedTuple):
    """What one item adds to its subset.

    Attributes:
        right: of its comparisons; may be a fraction.
        total: its comparisons; 0 if it does not count.
    """

    right: float
    total: int


class Tally(NamedTuple):
    """The sum of credits.

    Attributes:
        right: of all comparisons; may be a fraction.
        total: comparisons.
        num_items: that count.
    """

    right: float
    total: int
    num_items: int


class CombinedScore(NamedTuple):
    """What subsets come to; as in `BenchmarkResult`."""

    overall: float | None
    sections: Mapping[str, SubsetScore]


@dataclass(frozen=True, slots=True)
class SubsetScore:
    """A figure of a section or a subset.

    Attributes:
        score: 0 to 1 (RewardBench 2's Ties: up to 1.01).
        num_items: that have rewards.
        num_expected: in the whole benchmark; None where it is not known.
        num_correct: items or pairs that are right, where the score counts such; may be a fraction
            where a shared best place counts in part.
    """

    score: float
    num_items: int
    num_expected: int | None = None
    num_correct: float | None = None


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """What a benchmark says of a model.

    Attributes:
        overall: as the leaderboard has it, of the sections that are there; None without any.
        sections: by name, those that are there.
        subsets: by name, those that are there.
        more: further figures, by name, as JSON data: `difficulty`, `means`, `mean_of_sections`,
            `matrices`, `best_of_n`.
        missing: what the whole benchmark has and these items have not, a phrase each; empty if the
            result is whole.
    """

    overall: float | None
    sections: Mapping[str, SubsetScore]
    subsets: Mapping[str, SubsetScore]
    extra: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HubDataset:
    """Where the benchmark's data is on the hub.

    Attributes:
        repository: of data sets.
        split: to be read.
    """

    repository: str
    split: str


@dataclass(frozen=True, slots=True)
class OfficialProtocol:
    """How the benchmark's own runner prepares text; the default of `skyreward eval`.

    Attributes:
        max_length: tokens; None for the model's own limit.
        truncation: what is cut of a longer conversation.
        dtype: of the published runs; ours is chosen by the loader, and the report names both.
        source: where this is written down.
    """

    max_length: int | None
    truncation: str
    dtype: str
    source: str


class Benchmark(Protocol):
    """One benchmark.

    Attributes:
        name: as on the command line.
        title: as people write it.
        hub: its data sets.
        preparation: of the official runner.
        options: which of the ways of computing it; `values` of it gives them by name.
    """

    name: str
    title: str
    hub: tuple[HubDataset, ...]
    official_protocol: OfficialProtocol
    options: BenchmarkOptions

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """An item from a row as it is published.

        Args:
            row: of the data.
            origin: path of its file within what was given, `/` between folders; RM-Bench's subset
                is the start of its name.

        Raises:
            BenchmarkDataError: a column is missing or of another type, or the subset is unknown;
                says which, and what is allowed.
        """
        ...

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """The benchmark's figures, in any order of items."""
        ...


@runtime_checkable
class DecomposableBenchmark(Benchmark, Protocol):
    """A benchmark whose figures are made of sums over the items of each subset."""

    def grade_item(self, one: ScoredItem) -> ItemScore:
        """What an item adds to its subset."""
        ...

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """The overall figure and the sections.

        Args:
            tallies: of the subsets that are there, by name.
        """
        ...
