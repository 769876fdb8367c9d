"""RMB as one job: is every row there, in order and right, and what does doing it in one job save?

What is measured: the pairs and the best-of-n groups of RMB's published files as one JSONL, through
`skyreward score` with the model here; the same file through a running service, whose rewards have
to be the same; and rows drawn at random, each conversation scored alone. With `--ray` also on a
Ray cluster that is started here. A row whose text is longer than the model's limit has to carry its
error in every way alike. The last line is one JSON object.

    python tests/bench/jobs/rmb.py --data RMB_FOLDER [--limit 2000] [--ray]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from running import read_rows, require, run, summary_of, write_rows
from service import parser_of, service_of
from stress_result import finish

from rm_core import ModelConfig, Reward, RewardScorer
from serve.jobs.record_reader import parse_record

TOLERANCE = 1e-4


def rows_of(data: Path) -> Iterator[dict[str, Any]]:
    """All pairs, then all groups, in the shapes of a job."""
    for path in sorted(data.glob("Pairwise_set/**/*.json")):
        for item in json.loads(path.read_text(encoding="utf-8")):
            yield {
                "uid": item["pair_uid"],
                "prompt": _prompt(item),
                "chosen": item["chosen"]["answer"],
                "rejected": item["reject"]["answer"],
            }
    for path in sorted(data.glob("BoN_set/**/*.json")):
        for item in json.loads(path.read_text(encoding="utf-8")):
            answers = [item["bon_best"], *item["loser_list"]]
            yield {
                "uid": item["bon_uid"],
                "prompt": _prompt(item),
                "responses": [answer["answer"] for answer in answers],
            }


def _prompt(item: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": m["role"], "content": m["content"]} for m in item["conversation_input"]]


def rewards_of(row: dict[str, Any]) -> list[float | None]:
    """All that a row got, in order."""
    if "responses" in row:
        return list(row.get("rewards", []))
    return [row.get("chosen_reward"), row.get("rejected_reward")]


def differences(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> tuple[float, int]:
    """The largest between two runs, and how many rewards are equal to the last bit."""
    largest, equal = 0.0, 0
    for row, other in zip(rows, others, strict=True):
        for here, there in zip(rewards_of(row), rewards_of(other), strict=True):
            if here is None or there is None:
                largest = largest if here is there else float("inf")
                continue
            largest = max(largest, abs(here - there))
            equal += here == there
    return largest, equal


def one_by_one(rows: list[dict[str, Any]], number: int, model: str, seed: int) -> dict[str, Any]:
    """Conversations of rows drawn at random, each scored alone."""
    scorer = RewardScorer.load(ModelConfig(model))
    scorer.warm_up()
    drawn = random.Random(seed).sample(rows, min(number, len(rows)))
    tokens, started = 0, time.perf_counter()
    for row in drawn:
        for conversation in parse_record(row).conversations:
            (result,) = scorer.score([conversation])
            tokens += result.num_tokens if isinstance(result, Reward) else 0
    seconds = time.perf_counter() - started
    return {"rows": len(drawn), "tokens": tokens, "tokens_per_s": round(tokens / seconds)}


def accuracy(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of pairs, and of groups whose best has to be ahead of all; ties are wrong."""
    pairs = [row for row in rows if row.get("margin") is not None]
    groups = [row["rewards"] for row in rows if row.get("rewards") and None not in row["rewards"]]
    right = sum(all(rewards[0] > other for other in rewards[1:]) for rewards in groups)
    return {
        "pairwise": round(sum(row["margin"] > 0 for row in pairs) / max(1, len(pairs)), 4),
        "best_of_n": round(right / max(1, len(groups)), 4),
    }


def as_job(name: str, source: Path, folder: Path, *flags: str) -> tuple[list[dict[str, Any]], Any]:
    """The rows of one job, and its figures."""
    output = folder / f"{name}.jsonl"
    ended = require(run([source, "-o", output, *flags], folder / f"{name}.log"))
    summary = summary_of(output)
    saved = summary["num_tokens"] - summary["num_computed_tokens"]
    return read_rows(output), {
        "wall_s": round(ended.seconds, 1),
        "scoring_s": round(summary["seconds"], 1),
        "tokens": summary["num_tokens"],
        "not_computed": round(saved / max(1, summary["num_tokens"]), 4),
        "repeated": round(summary["num_repeated_tokens"] / max(1, summary["num_tokens"]), 4),
        "tokens_per_s": round(summary["num_tokens"] / summary["seconds"]),
        "errors": summary["errors"],
    }


def measured(options: argparse.Namespace, folder: Path) -> tuple[dict[str, bool], dict[str, Any]]:
    source = folder / "rmb.jsonl"
    rows = list(rows_of(options.data))
    if options.limit:
        # Pairs and groups alike.
        rows = rows[:: max(1, len(rows) // options.limit)][: options.limit]
    write_rows(source, rows)
    here, figures = as_job("here", source, folder, "--model", options.model)
    ways: dict[str, Any] = {"in this process": figures}
    checks = {
        "every row is there, in order": [{k: r[k] for k in rows[i]} for i, r in enumerate(here)]
        == rows,
        "no row has an error but those too long for the model": set(figures["errors"])
        <= {"conversation_too_long"},
    }
    others = {}
    with service_of(options) as service:
        others["service"] = as_job("service", source, folder, "--url", service.url)
    if options.ray:
        flags = ("--model", options.model, "--ray", "local")
        others["Ray"] = as_job("ray", source, folder, *flags)
    for way, (there, found) in others.items():
        largest, equal = differences(here, there)
        ways[way] = {**found, "largest_difference": largest, "bit_equal": equal}
        checks[f"rewards of the {way} are the same, to {TOLERANCE:g}"] = largest <= TOLERANCE
    alone = one_by_one(rows, options.alone, options.model, options.seed)
    return checks, {
        "rows": len(rows),
        "ways": ways,
        "one_by_one": alone,
        "times_one_by_one": round(figures["tokens_per_s"] / alone["tokens_per_s"], 2),
        "accuracy": accuracy(here),
    }


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Pairwise_set and BoN_set")
    parser.add_argument("--limit", type=int, help="so many rows, spread over all files")
    parser.add_argument("--alone", type=int, default=150, help="rows that are scored one by one")
    parser.add_argument("--ray", action="store_true", help="on a Ray cluster too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return finish(*measured(options, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
