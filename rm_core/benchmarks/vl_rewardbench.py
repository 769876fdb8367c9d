"""VL-RewardBench: a question about an image and two answers, in three groups of six sources.

The rules follow github.com/vl-rewardbench/VL_RewardBench at 9b10abd, `cal.py` and
`inference_hf.py`: the source of a row is the beginning of its id, and the mark `<image>` of some
questions is removed. That runner asks judges several times; a reward model scores both answers
once. Equal rewards are wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
from rm_core.benchmarks.variants import BenchmarkOptions
from rm_core.config import Kind
from rm_core.text import quote

SOURCES: Mapping[str, str] = {
    "wildvision": "wildvision-battle",
    "RLAIF": "rlaif-v",
    "RLHF": "rlhf-v",
    "hallucination": "povid",
    "mathverse": "reasoning_tasks",
    "mmmu": "reasoning_tasks",
}
"""Source by the beginning of the id, up to the first `-` or `_`."""
OTHER_SOURCE = "vlfeedback"
"""Source of rows with any other id."""
GROUPS: Mapping[str, Mapping[str, int]] = {
    "general": {"vlfeedback": 10, "wildvision-battle": 173},
    "hallucination": {"povid": 448, "rlaif-v": 233, "rlhf-v": 68},
    "reasoning": {"reasoning_tasks": 318},
}
"""Number of rows by source and group, counted in `data/data.jsonl` of the repository at e492d65."""
_COUNTS = {name: count for sources in GROUPS.values() for name, count in sources.items()}
_IMAGE_MARK = "<image>\n"
_RANKINGS = ((0, 1), (1, 0))


class VLRewardBench:
    """The VL-RewardBench benchmark."""

    name = "vl-rewardbench"
    title = "VL-RewardBench"
    kinds: tuple[Kind, ...] = ("classifier",)
    hub = (HubDataset("MMInstruction/VL-RewardBench", "test"),)
    official_protocol = OfficialProtocol(
        max_length=None,
        truncation="error",
        dtype="bfloat16",
        source="vl-rewardbench/VL_RewardBench@9b10abd cal.py; model card of Skywork-VL-Reward-7B",
        numbers_repeats=True,
        has_images=True,
    )

    def __init__(self, options: BenchmarkOptions | None = None) -> None:
        self.options = options or BenchmarkOptions()

    def read(self, row: Mapping[str, Any], origin: str) -> Item:
        """Read a pair in the order of the row; the prompt is the image, then the question.

        Published rows have the image in the column `image`, or its path in `image_path`. An image
        that is given as text (a path, a data URI or base64) is kept as that text.
        """
        columns = StrictRow(row, origin)
        has_path = columns.get("image") is None and columns.get("image_path") is not None
        image = columns.get_image("image_path" if has_path else "image")
        question = columns.get_text("query").replace(_IMAGE_MARK, "")
        responses = columns.get_texts("response")
        if len(responses) != 2:
            columns.refuse(f"the column `response` has {len(responses)} texts; it must have 2")
        return Item(
            id=columns.id,
            subset=SOURCES.get(re.split("[-_]", columns.id, maxsplit=1)[0], OTHER_SOURCE),
            prompt=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": image},
                        {"type": "text", "text": question},
                    ],
                }
            ],
            responses=responses,
            preferences=(_read_preference(columns),),
        )

    def compute_result(self, scored: Sequence[ScoredItem]) -> BenchmarkResult:
        """Compute the accuracy over all pairs; the mean of the groups is `mean_of_sections`."""
        tallies = tally_subsets(scored, self.grade_item)
        overall, sections = self.combine(tallies)
        subsets = compute_subset_scores(tallies, _COUNTS)
        extra = {"mean_of_sections": mean_score(sections)} if sections else {}
        missing = list_missing_items(count_items(subsets), _COUNTS, "subset")
        return BenchmarkResult(overall, sections, subsets, extra, tuple(missing))

    def grade_item(self, scored_item: ScoredItem) -> ItemScore:
        """Grade as right if the better answer has the higher reward."""
        (preference,) = scored_item.item.preferences
        return ItemScore(scored_item.get_margin(preference) > 0, 1)

    def combine(self, tallies: Mapping[str, Tally]) -> CombinedScore:
        """Compute three groups, each pooled over its sources, and the accuracy over all pairs."""
        sections = {}
        for name, sources in GROUPS.items():
            section = pool(tallies[source] for source in sources if source in tallies)
            if section is not None:
                sections[name] = compute_subset_score(section, sum(sources.values()))
        pooled = pool(tallies.values())
        return CombinedScore(compute_subset_score(pooled).score if pooled else None, sections)


def _read_preference(columns: StrictRow) -> Preference:
    name = "human_ranking"
    ranks = columns.get_list(name)
    ranking = tuple(columns.to_whole_number(rank, name) for rank in ranks)
    if ranking not in _RANKINGS:
        columns.refuse(
            f"the column `{name}` is {quote(list(ranking))}; it must be [0, 1] if the first "
            "response is better, or [1, 0]"
        )
    return Preference(ranking.index(0), ranking.index(1))
