"""PRMBench: label every step of a solution, in nine classes of errors and three categories.

The rules follow github.com/ssmisya/PRMBench at a1ae4ea (Apache-2.0),
`mr_eval/tasks/prmtest_classified/task.py`, and its runner of Skywork's models at 03a539b,
`mr_eval/models/skywork_prm.py`. PRMBench's score of solutions without errors, and its similarity to
them, are not computed: neither is part of PRMScore.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Self

from rm_core.benchmarks.aggregation import (
    count_items,
    group_by_subset,
    list_missing_items,
    mean,
    mean_score,
)
from rm_core.benchmarks.base import (
    BenchmarkResult,
    HubDataset,
    Item,
    ItemScore,
    OfficialProtocol,
    ScoredItem,
    SubsetScore,
)
from rm_core.benchmarks.strict_row import StrictRow
from rm_core.benchmarks.variants import BenchmarkOptions, choice
from rm_core.config import Kind

WITHOUT_ERRORS = "multi_solutions"
"""Class whose solutions are all right, so that only the F1 of right steps exists."""
CLASSES: Mapping[str, int] = {
    "redundency": 758,
    "circular": 758,
    "counterfactual": 757,
    "step_contradiction": 758,
    "domain_inconsistency": 757,
    "confidence": 757,
    "missing_condition": 756,
    "deception": 750,
    WITHOUT_ERRORS: 160,
}
"""Number of solutions of each class, spelled as in the data."""
CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "Simplicity": ("redundency", "circular"),
    "Soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "Sensitivity": ("missing_condition", "deception", WITHOUT_ERRORS),
}
_STEP_PREFIX = re.compile(r"(?:step\s*\d+\.\s*|\d+\.\s*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PRMBenchOptions(BenchmarkOptions):
    """Variants in which published results differ."""

    preparation: str = choice(
        "model",
        "prmbench",
        meaning="steps as they are, read at the model's own step marker, and right above 0.5; or "
        "as PRMBench runs Skywork's models: numbered steps, the marker ки, at most 512 tokens, and "
        "right unless the reward falls by 0.05 or more from the step before",
    )
    threshold: str = choice(
        "preparation",
        accepts_number=True,
        meaning="number above which a step is right, instead of that of the preparation",
    )


class Confusion(NamedTuple):
    """Numbers of steps by label and prediction; a right step is positive."""

    true_positive: int = 0
    false_positive: int = 0
    true_negative: int = 0
    false_negative: int = 0

    @classmethod
    def sum(cls, parts: Iterable[Self]) -> Self:
        """Add up confusions."""
        return cls(*(sum(column) for column in zip(*(cls(), *parts), strict=True)))

    @property
    def f1(self) -> float:
        """F1 of right steps; 0 without right steps."""
        return _compute_f1(self.true_positive, self.false_positive + self.false_negative)

    @property
    def negative_f1(self) -> float:
        """F1 of wrong steps; 0 without wrong steps."""
        return _compute_f1(self.true_negative, self.false_positive + self.false_negative)

    @property
    def prm_score(self) -> float:
        """Mean of the F1 of right steps and of the F1 of wrong steps."""
        return 0.5 * self.f1 + 0.5 * self.negative_f1


class PRMBench:
    """The PRMBench benchmark."""

    name = "prmbench"
    title = "PRMBench"
    kinds: tuple[Kind, ...] = ("step",)
    hub: tuple[HubDataset, ...] = ()  # The data is published on GitHub.

    def __init__(self, options: PRMBenchOptions | None = None) -> None:
        self.options = options or PRMBenchOptions()
        self._is_prmbench = self.options.preparation == "prmbench"
        default = "-0.05" if self._is_prmbench else "0.5"
        threshold = self.options.threshold
        self.threshold = float(default if threshold == "preparation" else threshold)
        self.official_protocol = OfficialProtocol(
            max_length=None,
            truncation="error",
            dtype="bfloat16",
            source="ssmisya/PRMBench@03a539b mr_eval/models/skywork_prm.py",
            keeps_first=True,
            step_format="skywork-prmbench" if self._is_prmbench else None,
        )

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Read a solution; the responses are its steps.

        The runner of Skywork's models splits its text at the markers, and the line break after the
        last marker becomes one more step, which counts as right.
        """
        columns = StrictRow(row, origin, "idx")
        steps = columns.get_texts("modified_process")
        if self._is_prmbench:
            numbered = [f"Step {i}: {_clean_step(step)} " for i, step in enumerate(steps, 1)]
            steps = (numbered[0], *(f"\n{step}" for step in numbered[1:]), "\n")
        errors = columns.get_list("error_steps", may_be_empty=True)
        return Item(
            id=columns.id,
            subset=columns.get_choice("classification", CLASSES),
            prompt=columns.get_user_message("modified_question"),
            responses=steps,
            preferences=(),
            # Some rows name errors after their last step; like PRMBench, this ignores them.
            metadata={"errors": [columns.to_whole_number(i, "error_steps") - 1 for i in errors]},
        )

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """Compute PRMScore over all steps, and by class and category.

        `overall` pools the steps of all classes, as published. A category is the unweighted mean of
        its classes; `mean_of_sections`, in `extra`, is that of the categories.
        """
        confusions = {
            name: Confusion.sum(self.count_steps(one) for one in group)
            for name, group in group_by_subset(scored).items()
        }
        counts = {name: len(group) for name, group in group_by_subset(scored).items()}
        subsets = {
            name: SubsetScore(
                confusion.f1 if name == WITHOUT_ERRORS else confusion.prm_score,
                counts[name],
                expected,
            )
            for name, expected in CLASSES.items()
            if (confusion := confusions.get(name))
        }
        sections = {}
        for category, names in CATEGORIES.items():
            score = mean(subsets[name].score for name in names if name in subsets)
            if score is not None:
                num_items = sum(counts.get(name, 0) for name in names)
                num_expected = sum(CLASSES[name] for name in names)
                sections[category] = SubsetScore(score, num_items, num_expected)
        extra: dict[str, Any] = {}
        if confusions:
            pooled = Confusion.sum(confusions.values())
            extra = {
                "mean_of_sections": mean_score(sections),
                "f1": pooled.f1,
                "negative_f1": pooled.negative_f1,
                "steps": {name: confusions[name]._asdict() for name in subsets},
            }
        return BenchmarkResult(
            pooled.prm_score if confusions else None,
            sections,
            subsets,
            extra,
            tuple(list_missing_items(count_items(subsets), CLASSES, "class")),
        )

    def grade_items(self, scored: Sequence[ScoredItem]) -> list[ItemScore]:
        """Grade each solution by the share of its steps that are labeled rightly."""
        confusions = map(self.count_steps, scored)
        return [ItemScore(one.true_positive + one.true_negative, sum(one)) for one in confusions]

    def count_steps(self, scored_item: ScoredItem) -> Confusion:
        """Compare the labels of a solution's steps; steps without a reward do not count."""
        rewards = scored_item.rewards
        if self._is_prmbench:
            rewards = [*rewards[:1], *(later - earlier for earlier, later in pairwise(rewards))]
        errors = set(scored_item.item.metadata["errors"])
        counts = {(is_right, predicted): 0 for is_right in (0, 1) for predicted in (0, 1)}
        for index, reward in enumerate(rewards):
            counts[index not in errors, reward > self.threshold] += 1
        return Confusion(counts[1, 1], counts[0, 1], counts[0, 0], counts[1, 0])


def _compute_f1(true: int, false: int) -> float:
    """Return F1 from the number of true positives, and of false positives and negatives."""
    return 2 * true / (2 * true + false) if true else 0.0


def _clean_step(step: str) -> str:
    """Return a step without its own number."""
    step = step.strip()
    match = _STEP_PREFIX.match(step)
    return (step[match.end() :] if match else step).strip()
