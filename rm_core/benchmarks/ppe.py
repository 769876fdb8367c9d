"""Preference Proxy Evaluations: human votes, and answers whose correctness was verified.

Data: lmarena-ai/PPE-Human-Preference-V1 and five lmarena-ai/PPE-*-Best-of-K. In a vote or a pair,
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
from rm_core.config import Kind

NUM_VOTES = 16038
NUM_PROMPTS = 2555
SETS: Mapping[str, str] = {
    "MMLU-Pro": "mmlupro",
    "MATH": "math",
    "GPQA": "gpqa",
    "IFEval": "ifeval",
    "MBPP-Plus": "mbppplus",
}
"""Sections of PPE correctness, and the word in the names of their files."""
_OFFICIAL_PROTOCOL = OfficialProtocol(
    max_length=None,
    truncation="error",
    dtype="bfloat16",
    source="not stated with the data; nothing is truncated",
)


class PPEPreference:
    """Human votes on pairs of answers. Ties do not count."""

    name = "ppe-preference"
    title = "PPE preference"
    kinds: tuple[Kind, ...] = ("classifier", "step", "judge")
    hub = (HubDataset("lmarena-ai/PPE-Human-Preference-V1", "test"),)
    official_protocol = _OFFICIAL_PROTOCOL

    def __init__(self, options: BenchmarkOptions | None = None) -> None:
        self.options = options or BenchmarkOptions()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Read both answers in the order of their numbers; the subset is the language."""
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
        """Compute the share of votes, ties excluded, with which the model agrees."""
        tallies = tally_subsets(scored, self.grade_item)
        overall, sections = self.combine(tallies)
        missing = [] if len(scored) == NUM_VOTES else [f"{len(scored)} of {NUM_VOTES} votes"]
        extra = {"num_ties": sum(not scored_item.item.preferences for scored_item in scored)}
        return BenchmarkResult(
            overall, sections, compute_subset_scores(tallies, {}), extra, tuple(missing)
        )

    def grade_item(self, scored_item: ScoredItem) -> ItemScore:
        """Grade as right if the preferred answer has the higher reward."""
        return _grade_pairs(scored_item)

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """Pool the votes of all languages."""
        votes = pool(tallies.values())
        sections = {"votes": compute_subset_score(votes)} if votes else {}
        return CombinedScore(mean_score(sections), sections)


class PPECorrectness:
    """Many answers to each prompt, each right or wrong: sampled pairs and best-of-n curves."""

    name = "ppe-correctness"
    title = "PPE correctness"
    kinds: tuple[Kind, ...] = ("classifier", "step")
    hub = tuple(HubDataset(f"lmarena-ai/PPE-{name}-Best-of-K", "train") for name in SETS)
    official_protocol = _OFFICIAL_PROTOCOL

    def __init__(self, options: BenchmarkOptions | None = None) -> None:
        self.options = options or BenchmarkOptions()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Read all answers in the order of their numbers; the subset is SET/MODEL."""
        columns = StrictRow(row, origin, "question_id")
        scores = columns.get_list("scores")
        truth = tuple(columns.to_number(value, "scores") for value in scores)
        responses = tuple(columns.get_text(f"response_{i + 1}") for i in range(len(truth)))
        if columns.get(f"response_{len(truth) + 1}") is not None:
            columns.refuse(f"there are more responses than the {len(truth)} `scores`")
        preferences = []
        for pair in columns.get_list("sampled_conflict_pairs", may_be_empty=True):
            preference = _read_preference(columns, pair, truth)
            # Pairs of answers with equal scores are skipped.
            if preference is not None:
                preferences.append(preference)
        section = _find_section(columns, origin)
        model = columns.get("model_name")
        has_model = isinstance(model, str) and model
        return Item(
            id=columns.id,
            subset=f"{section}/{model}" if has_model else section,
            prompt=_read_prompt(columns),
            responses=responses,
            preferences=tuple(preferences),
            metadata={"section": section, "truth": truth},
        )

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """Compute accuracy on pairs of five sets, the mean of the sets, and best-of-n curves."""
        tallies = tally_subsets(scored, self.grade_item)
        overall, sections = self.combine(tallies)
        groups: dict[str, list[ScoredItem]] = {}
        for name in SETS:
            group = [
                scored_item
                for scored_item in scored
                if scored_item.item.metadata["section"] == name
            ]
            if group:
                groups[name] = group
        extra: dict[str, Any] = {}
        pooled = pool(tallies.values())
        if pooled is not None:
            extra["accuracy"] = compute_subset_score(pooled).score
        if groups:
            curves = {name: _compute_curve(group) for name, group in groups.items()}
            extra["best_of_n"] = {"overall": _average_curves(list(curves.values())), **curves}
        missing = [f"section {name}: no items" for name in SETS if name not in groups]
        if len(scored) != NUM_PROMPTS:
            missing.append(f"{len(scored)} of {NUM_PROMPTS} prompts")
        return BenchmarkResult(
            overall, sections, compute_subset_scores(tallies, {}), extra, tuple(missing)
        )

    def grade_item(self, scored_item: ScoredItem) -> ItemScore:
        """Grade an item with one comparison for each sampled pair."""
        return _grade_pairs(scored_item)

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """Compute five sets, each with equal weight for its pairs, and their unweighted mean."""
        sections = {}
        for name in SETS:
            section = pool(subset for path, subset in tallies.items() if _get_set(path) == name)
            if section is not None:
                sections[name] = compute_subset_score(section)
        return CombinedScore(mean_score(sections), sections)


def _read_prompt(columns: StrictRow) -> list[dict[str, Any]]:
    if isinstance(columns.get("prompt"), list | tuple):
        return columns.get_messages("prompt")
    return columns.get_user_message("prompt")


def _grade_pairs(scored_item: ScoredItem) -> ItemScore:
    return grade_comparisons(
        [scored_item.get_margin(pair) > 0 for pair in scored_item.item.preferences]
    )


def _get_set(subset: str) -> str:
    return subset.split("/")[0]


def _read_preference(columns: StrictRow, pair: object, truth: Sequence[float]) -> Preference | None:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        columns.refuse("an item of the column `sampled_conflict_pairs` is not a pair of numbers")
    first, second = (columns.to_whole_number(index, "sampled_conflict_pairs") for index in pair)
    if max(first, second) >= len(truth):
        columns.refuse(
            f"`sampled_conflict_pairs` has the index {max(first, second)}, counted from 0, but "
            f"there are {len(truth)} responses"
        )
    if truth[first] == truth[second]:
        return None
    return Preference(first, second) if truth[first] > truth[second] else Preference(second, first)


def _find_section(columns: StrictRow, origin: str) -> str:
    """Return the section by the name of the file, its folders, or the column `benchmark`."""
    benchmark = columns.get("benchmark")
    names = [*reversed(origin.split("/")), benchmark if isinstance(benchmark, str) else ""]
    for name in names:
        letters = re.sub(r"[^a-z]", "", name.casefold())
        for section, word in SETS.items():
            if word in letters:
                return section
    columns.refuse(
        "the set of the row is unknown; the name of the file, a folder name or the column "
        f"`benchmark` must contain one of {', '.join(SETS)}"
    )


def _compute_curve(scored: Sequence[ScoredItem]) -> dict[str, Any]:
    return compute_curve(
        [
            Candidates(scored_item.rewards, scored_item.item.metadata["truth"])
            for scored_item in scored
        ]
    )


def _average_curves(curves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the unweighted mean of curves, for the values of n that all curves have."""
    sizes = [n for n in CURVE_SIZES if all(n in curve["n"] for curve in curves)]
    names = ("reward", "best", "worst")
    return {
        "n": sizes,
        **{
            name: [mean(curve[name][curve["n"].index(n)] for curve in curves) for n in sizes]
            for name in names
        },
    }
