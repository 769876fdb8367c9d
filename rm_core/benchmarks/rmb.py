"""RMB: pairs and best-of-n groups, for helpfulness and for harmlessness.

Formulas are those of github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark at 2be3180. The best answer
must beat every other of its group; equal rewards are wrong. Parts are flat over their items,
whatever the scenario.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rm_core.benchmarks.aggregation import (
    counts,
    lacks,
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
from rm_core.benchmarks.strict_row import Row, quoted
from rm_core.benchmarks.variants import Options

SECTIONS: Mapping[str, int] = {
    "pairwise/helpfulness": 10067,
    "pairwise/harmlessness": 7064,
    "best-of-n/helpfulness": 2109,
    "best-of-n/harmlessness": 1677,
}
_KINDS = {"pairwise_set": "pairwise", "bon_set": "best-of-n"}
_PATH = re.compile(
    r"(?:^|/)(Pairwise_set|BoN_set)/(Helpfulness|Harmlessness)(?=/|$)", re.IGNORECASE
)


class RMB:
    """RMB."""

    name = "rmb"
    title = "RMB"
    hub: tuple[HubSet, ...] = ()  # It is published on GitHub alone.
    preparation = Preparation(
        max_length=2048,
        truncation="left",
        dtype="float16",
        source="Zhou-Zoey/RMB-Reward-Model-Benchmark@2be3180",
    )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """A pair or a group: the better answer, then the others."""
        is_group = isinstance(row, Mapping) and row.get("bon_best") is not None
        columns = Row(row, origin, "bon_uid" if is_group else "pair_uid")
        path = _path(columns, origin)
        if is_group:
            others = columns.texts_inside("loser_list", "answer")
            responses = (columns.text("bon_best.answer"), *others)
        else:
            responses = (columns.text("chosen.answer"), columns.text("reject.answer"))
        if _section(path).startswith("pairwise") == is_group:
            columns.refuse(f"the row is a {'group' if is_group else 'pair'}, but is of {path}")
        return Item(
            id=columns.id,
            subset=path,
            prompt=columns.turns("conversation_input"),
            responses=responses,
            preferences=tuple(Preference(0, other) for other in range(1, len(responses))),
        )

    def figures(self, scored: Sequence[ScoredItem]) -> Figures:
        """Four parts and their plain mean; scenarios are the subsets."""
        tallies = tallied(scored, self.credit)
        overall, sections = self.combine(tallies)
        means = {
            kind: mean(part.score for name, part in sections.items() if name.startswith(kind))
            for kind in _KINDS.values()
        }
        more = {"means": {kind: value for kind, value in means.items() if value is not None}}
        missing = lacks(counts(sections), SECTIONS, "section")
        return Figures(overall, sections, parts_of(tallies, {}), more, tuple(missing))

    def credit(self, one: ScoredItem) -> Credit:
        """Right if the first answer has a higher reward than every other."""
        return Credit(one.rewards[0] > max(one.rewards[1:]), 1)

    def combine(self, tallies: Mapping[str, Tally]) -> Combined:
        """Four parts, flat over their scenarios, and their plain mean."""
        sections = {}
        for name, expected in SECTIONS.items():
            section = pooled(one for path, one in tallies.items() if _section(path) == name)
            if section is not None:
                sections[name] = part_of(section, expected)
        return Combined(mean_of(sections), sections)


def _path(columns: Row, origin: str) -> str:
    """The path of the row's scenario, from the name of its set on."""
    given = columns.get("category_path")
    path = given if isinstance(given, str) and given else origin.rsplit(".", 1)[0]
    found = _PATH.search(path)
    if found is None:
        columns.refuse(
            f"the scenario is {quoted(path)}, by the column `category_path` or else by the path of "
            "the file; it must have Pairwise_set/ or BoN_set/, then Helpfulness or Harmlessness"
        )
    return path[found.start(1) :]


def _section(path: str) -> str:
    found = _PATH.match(path)
    assert found is not None
    return f"{_KINDS[found[1].casefold()]}/{found[2].casefold()}"
