"""Base of all benchmarks: items, their rewards, and the results computed from them.

A benchmark is a pure function from rewards to results. Other modules compute the rewards, read the
files and show the results. Step models and judges give other numbers than one reward for each
response; `ScoredItem` says which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from rm_core.benchmarks.variants import BenchmarkOptions
from rm_core.config import Kind, StepFormat
from rm_core.inputs.conversations import Messages, get_text

Response: TypeAlias = str | Messages
"""A response as text, or the whole conversation, which begins with the prompt."""
ItemKey = tuple[str, str]
"""`id` and `subset` of an item; the combination is unique."""


class Preference(NamedTuple):
    """Two responses of an item, one of which is known to be better.

    Attributes:
        better: index of the better response.
        worse: index of the worse response.
    """

    better: int
    worse: int


class StepItem(NamedTuple):
    """A problem, and the steps of one solution."""

    prompt: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One row of a benchmark.

    Attributes:
        id: id of the row in the data.
        subset: name of the subset, as in `scores.jsonl`.
        prompt: messages that the responses answer. Parts of a content that are images have the
            bytes of the file; from `read` of a benchmark, also its path, a data URI or base64.
        responses: responses, in the order of `rewards` in `scores.jsonl`; in a benchmark of steps,
            the steps of one solution. A response of several messages is a whole conversation.
        preferences: every pair of responses of which the benchmark knows the better one; the pairs
            do not contain ties.
        metadata: other data of the row that results need: a category, a label, a goal. Items with
            equal `cluster` belong together: a result is computed from all of them.
    """

    id: str
    subset: str
    prompt: Messages
    responses: tuple[Response, ...]
    preferences: tuple[Preference, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> ItemKey:
        """Key by which a line of `scores.jsonl` is matched to the item."""
        return self.id, self.subset

    @property
    def label(self) -> str:
        """Name of the item in messages."""
        return f"item {self.id!r} of {self.subset!r}"

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs of responses that a judge compares: ascending indices, sorted."""
        return tuple(sorted({(min(pair), max(pair)) for pair in self.preferences}))

    @property
    def texts(self) -> tuple[str, ...]:
        """Text of each response; several messages are shown with their roles."""
        start = len(self.prompt)
        return tuple(
            response
            if isinstance(response, str)
            else "\n\n".join(
                f"[{one['role'].upper()}] {get_text(one['content'])}" for one in response[start:]
            )
            for response in self.responses
        )

    @property
    def step_item(self) -> StepItem:
        """The item of a benchmark of steps, as a step model scores it."""
        return StepItem(self.prompt[-1]["content"], self.texts)


class ScoredItem(NamedTuple):
    """An item and the numbers of a model, all finite.

    Attributes:
        item: the item.
        rewards: raw reward of each response, in order; empty if a judge compared the responses.
        log_odds: for each of `item.pairs`, the judge's log-odds that the first response of the pair
            is better: one number per order of presentation, first the order of the pair, then the
            swapped order. Empty for other models.
        step_rewards: rewards of the steps of each response, if a step model scored responses.
    """

    item: Item
    rewards: Sequence[float] = ()
    log_odds: Sequence[Sequence[float]] = ()
    step_rewards: Sequence[Sequence[float]] = ()

    def get_margin(self, preference: Preference) -> float:
        """Return how much better the model finds the better response; negative if it is wrong.

        Difference of the rewards, or the judge's log-odds, averaged over the orders.
        """
        better, worse = preference
        if not self.log_odds:
            return self.rewards[better] - self.rewards[worse]
        orders = self.log_odds[self.item.pairs.index((min(preference), max(preference)))]
        log_odds = math.fsum(orders) / len(orders)
        return log_odds if better < worse else -log_odds


class ItemScore(NamedTuple):
    """Contribution of one item to its subset.

    Attributes:
        right: number of correct comparisons; may be a fraction.
        total: number of comparisons; 0 if the item does not count.
    """

    right: float
    total: int


class Tally(NamedTuple):
    """Sum of item scores.

    Attributes:
        right: number of correct comparisons; may be a fraction.
        total: number of comparisons.
        num_items: number of items that count.
    """

    right: float
    total: int
    num_items: int


class CombinedScore(NamedTuple):
    """Scores that are computed from subsets, see `BenchmarkResult`."""

    overall: float | None
    sections: Mapping[str, SubsetScore]


@dataclass(frozen=True, slots=True)
class SubsetScore:
    """Score of a subset or a section.

    Attributes:
        score: 0 to 1 (RewardBench 2's Ties: up to 1.01).
        num_items: number of items with rewards.
        num_expected: number of items in the complete benchmark; None if unknown.
        num_correct: number of correct items or pairs, if the score counts them; may be a fraction
            if a shared highest reward counts in part.
    """

    score: float
    num_items: int
    num_expected: int | None = None
    num_correct: float | None = None


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Result of a benchmark for a model.

    Attributes:
        overall: overall score as on the leaderboard, from the available sections; None without
            sections.
        sections: scores of the available sections by name.
        subsets: scores of the available subsets by name.
        extra: further results by name, as JSON data, such as `difficulty`, `means`,
            `metrics` (further metrics of the benchmark, 0 to 1), `mean_of_sections`, `matrices`,
            `best_of_n`.
        missing: phrases that say which items of the complete benchmark are missing; empty if the
            result is complete.
    """

    overall: float | None
    sections: Mapping[str, SubsetScore]
    subsets: Mapping[str, SubsetScore]
    extra: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HubDataset:
    """Dataset of a benchmark on the hub.

    Attributes:
        repository: dataset repository.
        split: split to read.
    """

    repository: str
    split: str


@dataclass(frozen=True, slots=True)
class OfficialProtocol:
    """Settings of the benchmark's own runner; the defaults of `skyreward eval`.

    Attributes:
        max_length: maximum number of tokens; None for the model's own limit.
        truncation: truncation of longer conversations.
        dtype: dtype of the published runs; `skyreward eval` uses the loader's choice, and the
            report names both.
        source: where the settings are published.
        keeps_first: whether the first row counts if several rows have the key of one item;
            otherwise such rows are an error.
        numbers_repeats: whether rows that have the key of an earlier item and other texts are
            further items, with the ids `ID#2`, `ID#3` and so on in the order of the rows.
        step_format: step format of the official runs of Skywork's step models, if it is not that
            of the models. Steps after its maximum length have no reward and do not count.
        has_images: whether prompts have images, so that a model must read them.
    """

    max_length: int | None
    truncation: str
    dtype: str
    source: str
    keeps_first: bool = False
    numbers_repeats: bool = False
    step_format: StepFormat | None = None
    has_images: bool = False


class Benchmark(Protocol):
    """One benchmark.

    Attributes:
        name: name on the command line.
        title: name in reports.
        hub: datasets on the hub.
        official_protocol: settings of the official runner.
        options: chosen variant of the computation; `options.to_dict()` returns it by name.
        kinds: kinds of models that can be evaluated. With steps alone, an item is one solution.
    """

    name: str
    title: str
    kinds: tuple[Kind, ...]
    hub: tuple[HubDataset, ...]
    official_protocol: OfficialProtocol
    options: BenchmarkOptions

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Read an item from a row as published.

        Args:
            row: row of the data.
            origin: path of the row's file relative to the given path, with `/` between folders;
                the start of the file's name is RM-Bench's subset.

        Raises:
            BenchmarkDataError: a column is missing or has the wrong type, or the subset is
                unknown; the message names it and what is allowed.
        """
        ...

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """Compute the benchmark's result, which does not depend on the order of items."""
        ...


@runtime_checkable
class JointlyGradedBenchmark(Benchmark, Protocol):
    """A benchmark that grades an item by all items, such as by a threshold chosen on them."""

    def grade_items(self, scored: Sequence[ScoredItem]) -> list[ItemScore]:
        """Return the grade of each item, in order."""
        ...


@runtime_checkable
class JoinedBenchmark(Benchmark, Protocol):
    """A benchmark several of whose rows are one item."""

    def join(self, item: Item, other: Item) -> Item:
        """Return an item with the responses of another row of equal key.

        Raises:
            BenchmarkDataError: the rows contradict each other, or are the same.
        """
        ...


@runtime_checkable
class BenchmarkWithPublishedRewards(Benchmark, Protocol):
    """A benchmark whose authors publish rewards in files that describe the items."""

    def read_published_rewards(
        self, row: Mapping[str, Any], number: int, origin: str
    ) -> ScoredItem | None:
        """Read an item with its rewards from a row of such a file; None for another row.

        Args:
            row: row of the file.
            number: number of the row, the id of an item without one.
            origin: path of the file, for error messages.

        Raises:
            BenchmarkDataError: a column is missing or has the wrong type.
        """
        ...


@runtime_checkable
class DecomposableBenchmark(Benchmark, Protocol):
    """A benchmark whose scores are computed from sums over the items of each subset."""

    def grade_item(self, scored_item: ScoredItem) -> ItemScore:
        """Return the contribution of an item to its subset."""
        ...

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """Compute the overall score and the sections.

        Args:
            tallies: tallies of the available subsets, by name.
        """
        ...
