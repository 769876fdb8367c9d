"""Whole benchmarks by a model here and by a service: the same figures, and how long it takes.

What is measured: RM-Bench, RMB's best-of-n groups and JudgeBench as published, through `skyreward
eval --model` and `--url`, whose `summary.json` have to be the same byte for byte; and conversations
drawn at random, each scored alone by plain transformers, whose rewards have to be ours too. With
`--share` on a part of each file. The last line is one JSON object.

    python tests/bench/eval/full_benchmarks.py --data DATA [--benchmarks judgebench] [--share 0.1]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluations import Way, evaluated, part_of
from reference import Reference
from service import parser_of, service_of
from stress_result import finish

from rm_core import seeds_dir
from rm_core.benchmarks.base import Item
from rm_core.benchmarks.registry import BENCHMARKS
from serve.evaluation.runner import read_items

FILES = {"rm-bench": "rm-bench", "rmb": "rmb/BoN_set", "judgebench": "judgebench"}
TOLERANCE = 1e-4


def conversations(items: Sequence[Item]) -> Iterator[tuple[tuple[str, str], int, list[Any]]]:
    """Every conversation, with its item's subset and id, and the place of its response."""
    for item in items:
        for number, response in enumerate(item.responses):
            yield (
                (item.subset, item.id),
                number,
                [*item.prompt, {"role": "assistant", "content": response}],
            )


def one_by_one(way: Way, folder: Path, number: int, seed: int) -> dict[str, Any]:
    """Conversations drawn at random, by plain transformers; those that were cut are left out."""
    every = list(conversations(read_items(way.folder / "items.jsonl")))
    drawn = random.Random(seed).sample(every, min(number, len(every)))
    reference, rewards = Reference(folder), way.rewards
    longest = way.max_length
    tokens, largest, compared = 0, 0.0, 0
    started = time.perf_counter()
    for name, response, messages in drawn:
        length = len(reference.input_ids(messages))
        if length <= longest and name in rewards:
            found = reference.reward(messages)
            largest = max(largest, abs(found - rewards[name][response]))
            tokens, compared = tokens + length, compared + 1
    seconds = time.perf_counter() - started
    return {
        "conversations": compared,
        "largest_difference": largest,
        "tokens_per_s": round(tokens / seconds),
    }


def measured(
    options: argparse.Namespace, benchmark: str, folder: Path
) -> tuple[Mapping[str, bool], Mapping[str, Any]]:
    """One benchmark, both ways."""
    data = part_of(options.data / FILES[benchmark], folder / "data", options.share)
    length = BENCHMARKS[benchmark].official_protocol.max_length
    here = evaluated(benchmark, data, folder / "here", "--model", f"demo={options.model}")
    with service_of(options, "--local", model={"max_length": length}) as service:
        there = evaluated(benchmark, data, folder / "there", "--url", service.url)
    differences = [
        abs(ours - theirs)
        for name, rewards in here.rewards.items()
        for ours, theirs in zip(rewards, there.rewards[name], strict=True)
    ]
    checkpoint = seeds_dir() / "demo" if options.model == "demo" else Path(options.model)
    alone = one_by_one(here, checkpoint, options.alone, options.seed)
    took = here.figures()
    summary = json.loads(here.summary)
    return {
        f"{benchmark}: summary.json is the same byte for byte": here.summary == there.summary,
        f"{benchmark}: every item has rewards, but for turns that alone are too long": all(
            "too_long" in error["code"] for error in summary["failed"]
        ),
        f"{benchmark}: rewards are those of transformers, to {TOLERANCE:g}": alone[
            "largest_difference"
        ]
        <= TOLERANCE,
    }, {
        "items": summary["num_items"],
        "failed": len(summary["failed"]),
        "overall": summary["overall"],
        "sections": summary["sections"],
        "here": took,
        "service": there.figures(),
        "largest_difference": max(differences),
        "one_by_one": alone,
        "times_one_by_one": round(took["tokens_per_s"] / max(1, alone["tokens_per_s"]), 2),
    }


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="rm-bench, rmb and judgebench")
    parser.add_argument("--benchmarks", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--share", type=float, default=1.0, help="of each file; 1: all of it")
    parser.add_argument("--alone", type=int, default=150, help="conversations one by one")
    options = parser.parse_args()
    checks: dict[str, bool] = {}
    figures: dict[str, Any] = {"share": options.share}
    for benchmark in options.benchmarks:
        with tempfile.TemporaryDirectory() as folder:
            passed, found = measured(options, benchmark, Path(folder))
        checks |= passed
        figures[benchmark] = found
        print(json.dumps({benchmark: found}), flush=True)
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
