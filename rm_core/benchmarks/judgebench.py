"""JudgeBench: pairs of answers to hard questions, one right and one wrong, in four categories.

The rules follow github.com/ScalerLab/JudgeBench at e2c52c2, `utils/judges.py` and
`utils/metrics.py`. Equal rewards count as a verdict that B is better, which may be right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rm_core.benchmarks.aggregation import (
    compute_subset_score,
    compute_subset_scores,
    count_items,
    list_missing_items,
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
from rm_core.benchmarks.strict_row import StrictRow
from rm_core.benchmarks.variants import BenchmarkOptions, choice
from rm_core.config import Kind
from rm_core.text import quote

CATEGORIES: Mapping[str, str] = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
"""Category by prefix of `source`."""
GPT_COUNTS: Mapping[str, int] = {"knowledge": 154, "reasoning": 98, "math": 56, "coding": 42}
CLAUDE_COUNT = 270
LABELS = ("A>B", "B>A")


@dataclass(frozen=True, slots=True)
class JudgeBenchOptions(BenchmarkOptions):
    """Variants in which published results differ."""

    orders: str = choice(
        "one",
        "both",
        meaning="equal rewards count as B>A, as when the benchmark runs reward models, or as a "
        "draw, which is wrong, as when the benchmark runs judges, once in each order",
    )
    pairs: str = choice(
        "gpt",
        "claude",
        meaning="model that wrote the answers: 350 pairs of GPT-4o, or 270 of Claude 3.5 Sonnet",
    )


class JudgeBench:
    """The JudgeBench benchmark."""

    name = "judgebench"
    title = "JudgeBench"
    kinds: tuple[Kind, ...] = ("classifier", "step", "judge")
    official_protocol = OfficialProtocol(
        max_length=None,
        truncation="error",
        dtype="bfloat16",
        source="ScalerLab/JudgeBench@e2c52c2 utils/judges.py",
    )

    def __init__(self, options: JudgeBenchOptions | None = None) -> None:
        self.options = options or JudgeBenchOptions()
        self.hub = (HubDataset("ScalerLab/JudgeBench", self.options.pairs),)

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Read a pair: answer A, then answer B."""
        columns = StrictRow(row, origin, "pair_id")
        source = columns.get_text("source")
        if _find_category(source) is None:
            columns.refuse(
                f"the column `source` is {quote(source)}; it must start with "
                f"{', '.join(CATEGORIES)}"
            )
        model = columns.get("response_model")
        if isinstance(model, str) and not model.startswith(self.options.pairs):
            columns.refuse(
                f"the answers are by {quote(model)}, but the option `pairs` is "
                f"{self.options.pairs}; results of different pairs are not comparable"
            )
        a_is_better = columns.get_choice("label", LABELS) == LABELS[0]
        return Item(
            id=columns.id,
            subset=source,
            prompt=columns.get_user_message("question"),
            responses=(columns.get_text("response_A"), columns.get_text("response_B")),
            preferences=(Preference(0, 1) if a_is_better else Preference(1, 0),),
            metadata={"category": _find_category(source)},
        )

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """Compute the accuracy over all pairs; `mean_of_sections` is in `extra`."""
        is_gpt = self.options.pairs == "gpt"
        tallies = tally_subsets(scored, self.grade_item)
        overall, sections = self.combine(tallies)
        extra = {"mean_of_sections": mean_score(sections)} if sections else {}
        if is_gpt:
            missing = list_missing_items(count_items(sections), GPT_COUNTS, "section")
        else:
            missing = [f"section {name}: no items" for name in GPT_COUNTS if name not in sections]
            if len(scored) != CLAUDE_COUNT:
                missing.append(f"has {len(scored)} of {CLAUDE_COUNT} items")
        return BenchmarkResult(
            overall, sections, compute_subset_scores(tallies, {}), extra, tuple(missing)
        )

    def grade_item(self, scored_item: ScoredItem) -> ItemScore:
        """Grade as right if the labeled answer has the higher reward.

        A judge's verdict in each order counts 1 or -1, and the sum must be positive, so that two
        different verdicts are wrong.
        """
        label_is_a = scored_item.item.preferences[0].better == 0
        if scored_item.log_odds:
            (orders,) = scored_item.log_odds
            sum_of_verdicts = sum((value > 0) - (value < 0) for value in orders)
            return ItemScore((sum_of_verdicts > 0) if label_is_a else (sum_of_verdicts < 0), 1)
        a_reward, b_reward = scored_item.rewards
        if a_reward == b_reward:
            return ItemScore(self.options.orders == "one" and not label_is_a, 1)
        return ItemScore((a_reward > b_reward) == label_is_a, 1)

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """Compute four categories and the accuracy over all pairs."""
        sections = {}
        for name, expected in GPT_COUNTS.items():
            section = pool(
                subset for source, subset in tallies.items() if _find_category(source) == name
            )
            if section is not None:
                is_gpt = self.options.pairs == "gpt"
                sections[name] = compute_subset_score(section, expected if is_gpt else None)
        pooled = pool(tallies.values())
        return CombinedScore(compute_subset_score(pooled).score if pooled else None, sections)


def _find_category(source: str) -> str | None:
    return next((name for prefix, name in CATEGORIES.items() if source.startswith(prefix)), None)
