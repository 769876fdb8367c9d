"""M-RewardBench: RewardBench translated to 23 languages.

Counts, weights and formulas follow github.com/Cohere-Labs-Community/m-rewardbench at 708d3bd,
`analysis/plot_utils.py`: the score of a language is the mean of RewardBench's four sections, the
overall score the mean of the languages. Equal rewards are wrong. The pairs of translations, a fifth
part of the data set, are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rm_core.benchmarks.aggregation import (
    compute_subset_scores,
    compute_weighted_score,
    count_items,
    list_missing_items,
    mean,
    mean_score,
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
    SubsetScore,
    Tally,
)
from rm_core.benchmarks.rewardbench import SECTIONS
from rm_core.benchmarks.strict_row import StrictRow
from rm_core.benchmarks.variants import BenchmarkOptions
from rm_core.config import Kind
from rm_core.text import format_names

LANGUAGES = (
    "arb_Arab",
    "ces_Latn",
    "deu_Latn",
    "ell_Grek",
    "fra_Latn",
    "heb_Hebr",
    "hin_Deva",
    "ind_Latn",
    "ita_Latn",
    "jpn_Jpan",
    "kor_Hang",
    "nld_Latn",
    "pes_Arab",
    "pol_Latn",
    "por_Latn",
    "ron_Latn",
    "rus_Cyrl",
    "spa_Latn",
    "tur_Latn",
    "ukr_Cyrl",
    "vie_Latn",
    "zho_Hans",
    "zho_Hant",
)
"""Languages by their FLORES-200 codes, which name the folders of the data set."""
PARTS: Mapping[str, Mapping[str, int]] = {
    "Chat": {"Chat": 296},
    "Chat Hard": {"Chat Hard": 407},
    "Safety": {"Safety": 736},
    "Reasoning": {"math-prm": 447, "code": 983},
}
"""Number of pairs of each part of a language, by section. The two of Reasoning weigh the same."""
_PART_OF_SOURCE = {
    source: section if section != "Reasoning" else ("math-prm" if source == "math-prm" else "code")
    for section, sources in SECTIONS.items()
    for source in sources
}
_COUNTS = {
    f"{language}/{part}": count
    for language in LANGUAGES
    for parts in PARTS.values()
    for part, count in parts.items()
}
_NUM_PAIRS = sum(count for parts in PARTS.values() for count in parts.values())


class MRewardBench:
    """The M-RewardBench benchmark."""

    name = "m-rewardbench"
    title = "M-RewardBench"
    kinds: tuple[Kind, ...] = ("classifier", "step")
    hub: tuple[HubDataset, ...] = (
        HubDataset("CohereLabsCommunity/multilingual-reward-bench", "test"),
    )
    official_protocol = OfficialProtocol(
        max_length=2048,
        truncation="left",
        dtype="float16",
        source="as RewardBench, allenai/reward-bench@05a9005 scripts/run_rm.py; "
        "Cohere-Labs-Community/m-rewardbench@708d3bd cuts at 512 tokens",
    )

    def __init__(self, options: BenchmarkOptions | None = None) -> None:
        self.options = options or BenchmarkOptions()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Read a pair: the chosen response, then the rejected response."""
        columns = StrictRow(row, origin)
        # `source` has the subset of RewardBench; in the first version of the data, `subset`.
        column = "subset" if columns.get("source") is None else "source"
        source = columns.get_choice(column, _PART_OF_SOURCE)
        return Item(
            id=columns.id,
            subset=f"{_find_language(columns, origin)}/{_PART_OF_SOURCE[source]}",
            prompt=columns.get_user_message("prompt"),
            responses=(columns.get_text("chosen"), columns.get_text("rejected")),
            preferences=(Preference(0, 1),),
            metadata={"source": source},
        )

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """Compute the languages, which are the sections, and their mean.

        `metrics`, in `extra`, has RewardBench's four sections, each the mean over the languages.
        """
        tallies = tally_subsets(scored, self.grade_item)
        overall, sections = self.combine(tallies)
        subsets = compute_subset_scores(tallies, _COUNTS)
        by_language = [_compute_sections(tallies, language) for language in sections]
        means = {
            name: mean(each[name].score for each in by_language if name in each) for name in PARTS
        }
        metrics = {name: value for name, value in means.items() if value is not None}
        missing = list_missing_items(count_items(subsets), _COUNTS, "subset")
        extra = {"metrics": metrics} if metrics else {}
        return BenchmarkResult(overall, sections, subsets, extra, tuple(missing))

    def grade_item(self, scored_item: ScoredItem) -> ItemScore:
        """Grade as right if the chosen response has the higher reward."""
        (preference,) = scored_item.item.preferences
        return ItemScore(scored_item.get_margin(preference) > 0, 1)

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """Compute the mean of four sections for each language, and the mean of the languages."""
        languages = {}
        for language in LANGUAGES:
            sections = _compute_sections(tallies, language)
            score = mean_score(sections)
            if score is not None:
                num_items = sum(section.num_items for section in sections.values())
                languages[language] = SubsetScore(score, num_items, _NUM_PAIRS)
        return CombinedScore(mean_score(languages), languages)


def _find_language(columns: StrictRow, origin: str) -> str:
    if columns.get("language") in LANGUAGES:
        return str(columns.get("language"))
    folders = [folder for folder in origin.split("/") if folder in LANGUAGES]
    if not folders:
        columns.refuse(
            "neither the column `language` nor a folder of the file is a language; allowed: "
            f"{format_names(LANGUAGES)}"
        )
    return folders[-1]


def _compute_sections(tallies: Mapping[str, Tally], language: str) -> dict[str, SubsetScore]:
    """Return the available sections of a language."""
    sections = {}
    for name, parts in PARTS.items():
        expected = {f"{language}/{part}": count for part, count in parts.items()}
        score = compute_weighted_score(tallies, dict.fromkeys(expected, 1.0), expected)
        if score is not None:
            sections[name] = score
    return sections
