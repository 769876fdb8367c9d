"""Evaluations made up for tests of what shows them: every benchmark, whole or in part."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from rm_core import ScoreError
from rm_core.benchmarks.base import Item, ScoredItem
from rm_core.benchmarks.registry import BENCHMARKS
from rm_core.benchmarks.rewardbench import SECTIONS
from rm_core.benchmarks.rewardbench2 import SUBSETS
from serve.evaluation.result import Evaluation, MetricComparison
from serve.jobs.summary import Summary

NASTY = "<script>alert('$x$')</script> & \u8bed\u8a00"


def _pairs(chance: random.Random, size: int) -> Iterator[tuple[dict[str, Any], str]]:
    for subset in [name for rows in SECTIONS.values() for name in rows]:
        for _ in range(size):
            yield {"subset": subset, "chosen": _text(chance), "rejected": _text(chance)}, "x"


def _ties_too(chance: random.Random, size: int) -> Iterator[tuple[dict[str, Any], str]]:
    for subset in SUBSETS:
        for number in range(2 * size):
            kind = "ref" if number % 2 else "tied"
            right = 3 if subset == "Ties" and kind == "tied" else 1
            row = {
                "subset": subset,
                "chosen": [_text(chance) for _ in range(right)],
                "rejected": [_text(chance) for _ in range(3)],
                "num_correct": right,
            }
            yield row | ({"id": f"{kind}:{number // 2}"} if subset == "Ties" else {}), "x"


def _styles(chance: random.Random, size: int) -> Iterator[tuple[dict[str, Any], str]]:
    for domain in ("chat", "math", "code", "safety-refuse", "safety-response"):
        for _ in range(size):
            sides = {name: [_text(chance) for _ in range(3)] for name in ("chosen", "rejected")}
            yield sides, f"{domain}_filtered.json"


def _graded(chance: random.Random, size: int) -> Iterator[tuple[dict[str, Any], str]]:
    for name in ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus"):
        for _ in range(size):
            row = {f"response_{number + 1}": _text(chance) for number in range(8)}
            truth = [0, 1, *(chance.randint(0, 1) for _ in range(6))]
            pairs = [[1, 0], [0, 1]]
            yield row | {"scores": truth, "sampled_conflict_pairs": pairs}, f"PPE-{name}-Best-of-K"


_ROWS: dict[str, Callable[[random.Random, int], Iterator[tuple[dict[str, Any], str]]]] = {
    "rewardbench": _pairs,
    "rewardbench2": _ties_too,
    "rm-bench": _styles,
    "ppe-correctness": _graded,
}
"""Each gives rows without ids and prompts, and the file they are of."""


def _text(chance: random.Random) -> str:
    return "word " * chance.randint(1, 200)


def items(name: str, size: int = 6) -> list[Item]:
    """Items of a benchmark, the same every time; the first one's prompt is nasty."""
    chance, found = random.Random(name), []
    for number, (row, origin) in enumerate(_ROWS[name](chance, size)):
        prompt = NASTY if number == 0 else _text(chance)
        given = {"id": str(number), "question_id": str(number), "prompt": prompt} | row
        found.append(BENCHMARKS[name].read(given, origin))
    return found


def evaluation(name: str, model: str = "demo", size: int = 6, seed: int = 0) -> Evaluation:
    """A model on a benchmark, partial, with a failed item and something to compare with."""
    chance, benchmark = random.Random(seed), BENCHMARKS[name]
    *there, lost = items(name, size)
    scored = []
    for item in there:
        better = {pair.better for pair in item.preferences}
        rewards = [chance.gauss(place in better, 1.5) for place in range(len(item.responses))]
        scored.append(ScoredItem(item, rewards))
    figures = benchmark.compute_result(scored)
    return Evaluation(
        benchmark,
        model,
        figures,
        tuple(scored),
        failed_items=((lost, ScoreError("conversation_too_long", f"9 tokens {NASTY}")),),
        provenance={"data": NASTY, "max_length": 2048, "dtype": None, "ties": "wrong"},
        comparisons=(
            MetricComparison("overall", figures.overall, 0.943, "HF card", NASTY),
            MetricComparison("hard", None, 0.5, "board"),
        ),
        summary=Summary(num_rows=len(scored) + 1, num_tokens=5_000, seconds=3.0),
    )
