"""Preference Proxy Evaluations: people's votes, and answers whose correctness was verified.

Data: lmarena-ai/PPE-Human-Preference-V1 and five lmarena-ai/PPE-*-Best-of-K. Of a vote or a pair,
the better answer must have the higher reward; equal rewards are wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rm_core.benchmarks.aggregation import (
    fraction,
    mean,
    mean_of,
    part_of,
    parts_of,
    pooled,
    tallied,
)
from rm_core.benchmarks.base import (
    Combined,
    Credit,
    Figures,
    HubSet,
    Item,
    Preference,
    Preparation,
    ScoredItem,
    Tally,
)
from rm_core.benchmarks.best_of_n import CURVE_SIZES, Candidates, curve
from rm_core.benchmarks.strict_row import Row
from rm_core.benchmarks.variants import Options

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
_PREPARATION = Preparation(
    max_length=None,
    truncation="error",
    dtype="bfloat16",
    source="not stated with the data; nothing is cut",
)


class PPEPreference:
    """Votes of people on pairs of answers. Votes that are ties decide nothing."""

    name = "ppe-preference"
    title = "PPE preference"
    hub = (HubSet("lmarena-ai/PPE-Human-Preference-V1", "test"),)
    preparation = _PREPARATION

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Both answers as they are numbered; the language is the subset."""
        columns = Row(row, origin, "question_id")
        winner = columns.text("winner")
        if winner not in ("model_a", "model_b") and not winner.startswith("tie"):
            columns.choice("winner", ("model_a", "model_b", "tie", "tie (bothbad)"))
        preferences: tuple[Preference, ...] = ()
        if winner in ("model_a", "model_b"):
            preferences = (Preference(0, 1) if winner == "model_a" else Preference(1, 0),)
        language = columns.get("language")
        return Item(
            id=columns.id,
            subset=language if isinstance(language, str) and language else "unknown",
            prompt=_prompt(columns),
            responses=(columns.text("response_1"), columns.text("response_2")),
            preferences=preferences,
            facts={"winner": winner},
        )

    def figures(self, scored: Sequence[ScoredItem]) -> Figures:
        """The share of votes for one of the two that the model agrees with."""
        tallies = tallied(scored, self.credit)
        overall, sections = self.combine(tallies)
        missing = [] if len(scored) == NUM_VOTES else [f"{len(scored)} of {NUM_VOTES} votes"]
        more = {"num_ties": sum(not one.item.preferences for one in scored)}
        return Figures(overall, sections, parts_of(tallies, {}), more, tuple(missing))

    def credit(self, one: ScoredItem) -> Credit:
        """Right if the answer that was voted for has the higher reward."""
        return _credit(one)

    def combine(self, tallies: Mapping[str, Tally]) -> Combined:
        """All votes, whatever the language."""
        votes = pooled(tallies.values())
        sections = {"votes": part_of(votes)} if votes else {}
        return Combined(mean_of(sections), sections)


class PPECorrectness:
    """Many answers to a prompt, each right or wrong: sampled pairs, and best of n."""

    name = "ppe-correctness"
    title = "PPE correctness"
    hub = tuple(HubSet(f"lmarena-ai/PPE-{name}-Best-of-K", "train") for name in SETS)
    preparation = _PREPARATION

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """All answers as they are numbered; the subset is the set and who answered."""
        columns = Row(row, origin, "question_id")
        scores = columns.items("scores")
        truth = tuple(columns.number(value, "scores") for value in scores)
        responses = tuple(columns.text(f"response_{i + 1}") for i in range(len(truth)))
        if columns.get(f"response_{len(truth) + 1}") is not None:
            columns.refuse(f"there are more responses than the {len(truth)} `scores`")
        preferences = []
        for pair in columns.items("sampled_conflict_pairs", may_be_empty=True):
            preference = _conflict(columns, pair, truth)
            # One that contradicts nothing says nothing.
            if preference is not None:
                preferences.append(preference)
        section = _section(columns, origin)
        answered_by = columns.get("model_name")
        named = isinstance(answered_by, str) and answered_by
        return Item(
            id=columns.id,
            subset=f"{section}/{answered_by}" if named else section,
            prompt=_prompt(columns),
            responses=responses,
            preferences=tuple(preferences),
            facts={"section": section, "truth": truth},
        )

    def figures(self, scored: Sequence[ScoredItem]) -> Figures:
        """Pairs of five sets, their plain mean, and curves of best of n."""
        tallies = tallied(scored, self.credit)
        overall, sections = self.combine(tallies)
        groups: dict[str, list[ScoredItem]] = {}
        for name in SETS:
            there = [one for one in scored if one.item.facts["section"] == name]
            if there:
                groups[name] = there
        more: dict[str, Any] = {}
        everything = pooled(tallies.values())
        if everything is not None:
            more["accuracy"] = part_of(everything).score
        if groups:
            curves = {name: _curve(there) for name, there in groups.items()}
            more["best_of_n"] = {"overall": _mean_curve(list(curves.values())), **curves}
        missing = [f"section {name}: no items" for name in SETS if name not in groups]
        if len(scored) != NUM_PROMPTS:
            missing.append(f"{len(scored)} of {NUM_PROMPTS} prompts")
        return Figures(overall, sections, parts_of(tallies, {}), more, tuple(missing))

    def credit(self, one: ScoredItem) -> Credit:
        """As many comparisons as there are sampled pairs."""
        return _credit(one)

    def combine(self, tallies: Mapping[str, Tally]) -> Combined:
        """Five sets, each flat over its pairs, and their plain mean."""
        sections = {}
        for name in SETS:
            section = pooled(one for subset, one in tallies.items() if _set_of(subset) == name)
            if section is not None:
                sections[name] = part_of(section)
        return Combined(mean_of(sections), sections)


def _prompt(columns: Row) -> list[dict[str, Any]]:
    if isinstance(columns.get("prompt"), list | tuple):
        return columns.turns("prompt")
    return columns.question("prompt")


def _credit(one: ScoredItem) -> Credit:
    rewards = one.rewards
    return fraction([rewards[better] > rewards[worse] for better, worse in one.item.preferences])


def _set_of(subset: str) -> str:
    return subset.split("/")[0]


def _conflict(columns: Row, pair: object, truth: Sequence[float]) -> Preference | None:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        columns.refuse("an item of the column `sampled_conflict_pairs` is no pair of numbers")
    first, second = (columns.as_whole(place, "sampled_conflict_pairs") for place in pair)
    if max(first, second) >= len(truth):
        columns.refuse(
            f"`sampled_conflict_pairs` names response {max(first, second)}, counted from 0; "
            f"there are {len(truth)}"
        )
    if truth[first] == truth[second]:
        return None
    return Preference(first, second) if truth[first] > truth[second] else Preference(second, first)


def _section(columns: Row, origin: str) -> str:
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


def _curve(scored: Sequence[ScoredItem]) -> dict[str, Any]:
    return curve([Candidates(one.rewards, one.item.facts["truth"]) for one in scored])


def _mean_curve(curves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
