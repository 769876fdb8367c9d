"""Posts every RM-Bench item of a file to a running service, and compares with plain transformers.

What is measured: for each item the three chosen and three rejected responses, paired in file
order, go to `/v1/compare`; every reward that comes back is compared with transformers' own
classifier, eager attention, one conversation at a time, in float32. The last line is one JSON
object.

    skyreward serve &
    python tests/bench/rm_bench_parity.py --data path/to/chat_filtered.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rm_core import seeds_dir
from serve.client import ScoringClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from reference import Reference

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Outcome:
    """What the run found."""

    items: int
    pairs: int
    errors: int
    conversations: int
    tokens: int
    largest_difference: float
    service_s: float
    plain_s: float

    @property
    def passed(self) -> bool:
        return self.errors == 0 and self.largest_difference <= TOLERANCE


def read_pairs(path: Path) -> tuple[int, list[dict[str, str]]]:
    """Number of items, and three pairs of each."""
    items = json.loads(path.read_text(encoding="utf-8"))
    return len(items), [
        {"prompt": item["prompt"], "chosen": chosen, "rejected": rejected}
        for item in items
        for chosen, rejected in zip(item["chosen"], item["rejected"], strict=True)
    ]


def run(data: Path, url: str, model: str | None, folder: Path, every: int = 1) -> Outcome:
    """Post all pairs; every n-th one is scored by plain transformers too."""
    num_items, pairs = read_pairs(data)
    started = time.perf_counter()
    results: list[dict[str, Any]] = []
    tokens = 0
    with ScoringClient(url, model) as client:
        for start in range(0, len(pairs), 48):
            answer = client.post("/v1/compare", {"pairs": pairs[start : start + 48]})
            results += answer["results"]
            tokens += answer["usage"]["num_tokens"]
    served = time.perf_counter()
    reference = Reference(folder)
    differences = [0.0]
    for pair, result in list(zip(pairs, results, strict=True))[::every]:
        for side in ("chosen", "rejected"):
            if "error" in result:
                continue
            plain = reference.reward(
                [
                    {"role": "user", "content": pair["prompt"]},
                    {"role": "assistant", "content": pair[side]},
                ]
            )
            differences.append(abs(result[f"{side}_reward"] - plain))
    return Outcome(
        items=num_items,
        pairs=len(pairs),
        errors=sum("error" in result for result in results),
        conversations=len(differences) - 1,
        tokens=tokens,
        largest_difference=max(differences),
        service_s=round(served - started, 2),
        plain_s=round(time.perf_counter() - served, 2),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", help="a model of the service; may be left out if it has one")
    parser.add_argument("--folder", type=Path, default=seeds_dir() / "demo", help="its checkpoint")
    options = parser.parse_args()
    outcome = run(options.data, options.url, options.model, options.folder)
    print(json.dumps({"passed": outcome.passed, **asdict(outcome)}))
    return 0 if outcome.passed else 1


if __name__ == "__main__":
    sys.exit(main())
