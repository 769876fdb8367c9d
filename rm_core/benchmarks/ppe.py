"""Preference Proxy Evaluations: people's votes, and answers whose correctness was verified.

Data: lmarena-ai/PPE-Human-Preference-V1 and five lmarena-ai/PPE-*-Best-of-K. Of a vote or a pair,
the better answer must have the higher reward; equal rewards are wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rm_core.benchmarks.aggregation import (
    compute_subset_score,
    compute_subset_scores,
    grade_comparisons,
    mean,
    mean_score,
    pool,
    tally_subsets,
)
from rm_core.benchmarks.base import (
    BenchmarkResult,
    CombinedScore,
    HubDataset,
    Item,
    ItemScore,
    OfficialProtocol,
    Preference,
    ScoredItem,
    Tally,
)
from rm_core.benchmarks.best_of_n import CURVE_SIZES, Candidates, compute_curve
from rm_core.benchmarks.strict_row import StrictRow
from rm_core.benchmarks.variants import BenchmarkOptions

NUM_VOTES = 16038
NUM_PROMPTS = 2555
SETS: Mapping[str, str] = {
    "MMLU-Pro": "mmlupro",
    "MATH": "math",
    "GPQA": "gpqa",
    "IFEval": "ifeval",
    "MBPP-Plus": "mbppplus",
}
"""Sections of the correctness half, and what is in the names of their files."""
_PREPARATION = OfficialProtocol(
    max_length=None,
    truncation="error",
    dtype="bfloat16",
    source="not stated with the data; nothing is cut",
)


class PPEPreference:
    """Votes of people on pairs of answers. Votes that are ties decide nothing."""

    name = "ppe-preference"
    title = "PPE preference"
    hub = (HubDataset("lmarena-ai/PPE-Human-Preference-V1", "test"),)
    official_protocol = _PREPARATION

    def __init__(self, options: BenchmarkOptions | None = None) -> None:
        self.options = options or BenchmarkOptions()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Both answers as they are numbered; the language is the subset."""
        columns = StrictRow(row, origin, "question_id")
        winner = columns.get_text("winner")
        if winner not in ("model_a", "model_b") and not winner.startswith("tie"):
            columns.get_choice("winner", ("model_a", "model_b", "tie", "tie (bothbad)"))
        preferences: tuple[Preference, ...] = ()
        if winner in ("model_a", "model_b"):
            preferences = (Preference(0, 1) if winner == "model_a" else Preference(1, 0),)
        language = columns.get("language")
        return Item(
            id=columns.id,
            subset=language if isinstance(language, str) and language else "unknown",
            prompt=_read_prompt(columns),
            responses=(columns.get_text("response_1"), columns.get_text("response_2")),
            preferences=preferences,
            metadata={"winner": winner},
        )

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """The share of votes for one of the two that the model agrees with."""
        tallies = tally_subsets(scored, self.grade_item)
        overall, sections = self.combine(tallies)
        missing = [] if len(scored) == NUM_VOTES else [f"{len(scored)} of {NUM_VOTES} votes"]
        more = {"num_ties": sum(not one.item.preferences for one in scored)}
        return BenchmarkResult(
            overall, sections, compute_subset_scores(tallies, {}), more, tuple(missing)
        )

    def grade_item(self, one: ScoredItem) -> ItemScore:
        """Right if the answer that was voted for has the higher reward."""
        return _grade_pairs(one)

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """All votes, whatever the language."""
        votes = pool(tallies.values())
        sections = {"votes": compute_subset_score(votes)} if votes else {}
        return CombinedScore(mean_score(sections), sections)


class PPECorrectness:
    """Many answers to a prompt, each right or wrong: sampled pairs, and best of n."""

    name = "ppe-correctness"
    title = "PPE correctness"
    hub = tuple(HubDataset(f"lmarena-ai/PPE-{name}-Best-of-K", "train") for name in SETS)
    official_protocol = _PREPARATION

    def __init__(self, options: BenchmarkOptions | None = None) -> None:
        self.options = options or BenchmarkOptions()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """All answers as they are numbered; the subset is the set and who answered."""
        columns = StrictRow(row, origin, "question_id")
        scores = columns.get_list("scores")
        truth = tuple(columns.to_number(value, "scores") for value in scores)
        responses = tuple(columns.get_text(f"response_{i + 1}") for i in range(len(truth)))
        if columns.get(f"response_{len(truth) + 1}") is not None:
            columns.refuse(f"there are more responses than the {len(truth)} `scores`")
        preferences = []
        for pair in columns.get_list("sampled_conflict_pairs", may_be_empty=True):
            preference = _read_preference(columns, pair, truth)
            # One that contradicts nothing says nothing.
            if preference is not None:
                preferences.append(preference)
        section = _find_section(columns, origin)
        answered_by = columns.get("model_name")
        named = isinstance(answered_by, str) and answered_by
        return Item(
            id=columns.id,
            subset=f"{section}/{answered_by}" if named else section,
            prompt=_read_prompt(columns),
            responses=responses,
            preferences=tuple(preferences),
            metadata={"section": section, "truth": truth},
        )

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """Pairs of five sets, their plain mean, and curves of best of n."""
        tallies = tally_subsets(scored, self.grade_item)
        overall, sections = self.combine(tallies)
        groups: dict[str, list[ScoredItem]] = {}
        for name in SETS:
            there = [one for one in scored if one.item.metadata["section"] == name]
            if there:
                groups[name] = there
        more: dict[str, Any] = {}
        everything = pool(tallies.values())
        if everything is not None:
            more["accuracy"] = compute_subset_score(everything).score
        if groups:
            curves = {name: _compute_curve(there) for name, there in groups.items()}
            more["best_of_n"] = {"overall": _average_curves(list(curves.values())), **curves}
        missing = [f"section {name}: no items" for name in SETS if name not in groups]
        if len(scored) != NUM_PROMPTS:
            missing.append(f"{len(scored)} of {NUM_PROMPTS} prompts")
        return BenchmarkResult(
            overall, sections, compute_subset_scores(tallies, {}), more, tuple(missing)
        )

    def grade_item(self, one: ScoredItem) -> ItemScore:
        """As many comparisons as there are sampled pairs."""
        return _grade_pairs(one)

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """Five sets, each flat over its pairs, and their plain mean."""
        sections = {}
        for name in SETS:
            section = pool(one for subset, one in tallies.items() if _get_set(subset) == name)
            if section is not None:
                sections[name] = compute_subset_score(section)
        return CombinedScore(mean_score(sections), sections)


def _read_prompt(columns: StrictRow) -> list[dict[str, Any]]:
    if isinstance(columns.get("prompt"), list | tuple):
        return columns.get_messages("prompt")
    return columns.get_user_message("prompt")


def _grade_pairs(one: ScoredItem) -> ItemScore:
    rewards = one.rewards
    return grade_comparisons(
        [rewards[better] > rewards[worse] for better, worse in one.item.preferences]
    )


def _get_set(subset: str) -> str:
    return subset.split("/")[0]


def _read_preference(columns: StrictRow, pair: object, truth: Sequence[float]) -> Preference | None:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        columns.refuse("an item of the column `sampled_conflict_pairs` is no pair of numbers")
    first, second = (columns.to_whole_number(place, "sampled_conflict_pairs") for place in pair)
    if max(first, second) >= len(truth):
        columns.refuse(
            f"`sampled_conflict_pairs` names response {max(first, second)}, counted from 0; "
            f"there are {len(truth)}"
        )
    if truth[first] == truth[second]:
        return None
    return Preference(first, second) if truth[first] > truth[second] else Preference(second, first)


def _find_section(columns: StrictRow, origin: str) -> str:
    """By the name of the file, else of its folder, else of the row's own `benchmark`."""
    given = columns.get("benchmark")
    places = [*reversed(origin.split("/")), given if isinstance(given, str) else ""]
    for place in places:
        letters = re.sub(r"[^a-z]", "", place.casefold())
        for section, name in SETS.items():
            if name in letters:
                return section
    columns.refuse(
        "which set the row is of is told by the name of its file or folder, or by a column "
        f"`benchmark`; one of them must contain {', '.join(SETS)}"
    )


def _compute_curve(scored: Sequence[ScoredItem]) -> dict[str, Any]:
    return compute_curve([Candidates(one.rewards, one.item.metadata["truth"]) for one in scored])


def _average_curves(curves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The plain mean of curves, as far as all of them go."""
    sizes = [n for n in CURVE_SIZES if all(n in one["n"] for one in curves)]
    names = ("reward", "best", "worst")
    return {
        "n": sizes,
        **{
            name: [mean(one[name][one["n"].index(n)] for one in curves) for n in sizes]
            for name in names
        },
    }
