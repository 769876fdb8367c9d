"""Plan-RewardBench as published, by a model here and by a service, and one conversation at a time.

What is measured: every split at hand through `skyreward eval --model` and `--url`, whose
`summary.json` have to be the same byte for byte, with the share of tokens that are not computed;
then pairs drawn at random, in groups that four ways score in turn: together, one by one, one by one
without caches, and one by one by plain transformers (SDPA), whose rewards have to be ours too. The
ways are timed in seconds of CPU on one thread, since other processes may use the machine.

The model is a random one of Qwen3's architecture with the vocabulary of Qwen2.5, which is
downloaded (`tests/vocabularies.py`). The last line is one JSON object.

    python tests/bench/eval/plan_rewardbench.py --data plan-rewardbench/ [--trajectories messages]
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from evaluations import ROOT, Way, evaluated
from transformers import Qwen3Config, Qwen3ForSequenceClassification

sys.path.insert(0, str(ROOT / "tests" / "bench"))

from service import parser_of, service_of
from stress_result import finish
from vocabularies import qwen
from ways import Plain, in_process
from workloads import TEMPLATE

from rm_core import BatchConfig, Encoded, ModelConfig, RewardScorer
from rm_core.benchmarks.plan_rewardbench import PlanRewardBench
from rm_core.inputs.conversations import join
from rm_core.packing import common_prefix_length
from serve.evaluation.runner import read_items

TOLERANCE = 1e-4
GROUP = 8
"""Number of pairs that every way scores before the next group."""
TOGETHER, ONE_BY_ONE, UNCACHED, PLAIN = (
    "together",
    "one by one",
    "one by one, without caches",
    "plain transformers, SDPA, one by one",
)
Conversation = list[dict[str, Any]]


def build_model(folder: Path) -> Path:
    """Write a random model whose rewards spread, small enough for trajectories on a CPU."""
    tokenizer = qwen(chat_template=TEMPLATE)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=32_768,
        initializer_range=0.1,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.normal_(std=1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read_pairs(way: Way) -> list[tuple[tuple[str, str], list[Conversation]]]:
    """Return the key and both conversations of each item that was scored."""
    rewards = way.rewards
    return [
        (
            (item.subset, item.id),
            [join(item.prompt, response) for response in item.responses],
        )
        for item in read_items(way.folder / "items.jsonl")
        if (item.subset, item.id) in rewards
    ]


def measure_sharing(
    scorer: RewardScorer, pairs: Sequence[tuple[tuple[str, str], list[Conversation]]]
) -> dict[str, Any]:
    """Return what conversations share: by split within a pair, and at most among all of them."""
    splits: dict[str, dict[str, int]] = {}
    every: list[tuple[int, ...]] = []
    for (split, _), conversations in pairs:
        first, second = (
            one.input_ids
            for one in scorer.encoder.encode_all(conversations, "right")
            if isinstance(one, Encoded)
        )
        every += [tuple(first), tuple(second)]
        total = splits.setdefault(split, {"pairs": 0, "tokens": 0, "shared": 0, "longest": 0})
        total["pairs"] += 1
        total["tokens"] += len(first) + len(second)
        total["shared"] += 2 * common_prefix_length(first, second)
        total["longest"] = max(total["longest"], len(first), len(second))
    every.sort()
    num_tokens = sum(map(len, every))
    shared = sum(common_prefix_length(*neighbors) for neighbors in itertools.pairwise(every))
    return {
        "splits": {
            split: {
                "pairs": total["pairs"],
                "tokens": total["tokens"],
                "shared_in_pair": round(total["shared"] / total["tokens"], 4),
                "longest": total["longest"],
            }
            for split, total in splits.items()
        },
        "shared_in_pairs": round(sum(t["shared"] for t in splits.values()) / num_tokens, 4),
        "not_computed_at_most": round(shared / num_tokens, 4),
        "max_batch_tokens": scorer.describe().max_batch_tokens,
    }


def compare_ways(
    config: ModelConfig,
    pairs: Sequence[tuple[tuple[str, str], list[Conversation]]],
    rewards: dict[tuple[str, str], list[float]],
) -> dict[str, Any]:
    """Time every way on the same pairs, one group after the other."""
    together, alone = RewardScorer.load(config), RewardScorer.load(config)
    uncached = RewardScorer.load(config, BatchConfig(prefix_cache_bytes=0))
    score_together, score_alone, score_uncached = map(in_process, (together, alone, uncached))
    plain = Plain(uncached)
    computed: dict[str, int] = {}

    def run(name: str, score: Callable[..., Any], conversations: list[Conversation]) -> list[float]:
        scored = score(conversations)
        computed[name] = computed.get(name, 0) + (scored.num_computed_tokens or 0)
        return list(scored.rewards)

    ways: dict[str, Callable[[list[Conversation]], list[float]]] = {
        TOGETHER: lambda group: run(TOGETHER, score_together, group),
        ONE_BY_ONE: lambda group: [r for c in group for r in run(ONE_BY_ONE, score_alone, [c])],
        UNCACHED: lambda group: [r for c in group for r in run(UNCACHED, score_uncached, [c])],
        PLAIN: lambda group: plain.one_by_one(group).rewards,
    }
    seconds, largest = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    for start in range(0, len(pairs), GROUP):
        group = pairs[start : start + GROUP]
        conversations = [one for _, both in group for one in both]
        expected = [reward for key, _ in group for reward in rewards[key]]
        for name, way in ways.items():
            started = time.process_time()
            found = way(conversations)
            seconds[name] += time.process_time() - started
            differences = (abs(a - b) for a, b in zip(found, expected, strict=True))
            largest[name] = max(largest[name], *differences)
    return {
        name: {
            "cpu_s": round(seconds[name], 1),
            "times_together": round(seconds[name] / seconds[TOGETHER], 2),
            "computed_tokens": computed.get(name) or None,
            "largest_difference": largest[name],
        }
        for name in ways
    }


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the splits")
    parser.add_argument(
        "--trajectories", choices=["flattened", "messages"], default="flattened", help="the variant"
    )
    parser.add_argument("--pairs", type=int, default=80, help="pairs scored in four ways; 0: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    length = PlanRewardBench.official_protocol.max_length
    variant = ("--variant", f"trajectories={options.trajectories}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.model == "demo":  # whose context is too short
            options.model = str(build_model(folder / "model"))
        model = ("--model", f"demo={options.model}")
        ours = evaluated("plan-rewardbench", options.data, folder / "here", *variant, *model)
        with service_of(options, "--local", model={"max_length": length}) as service:
            url = ("--url", service.url)
            theirs = evaluated("plan-rewardbench", options.data, folder / "there", *variant, *url)
        pairs = read_pairs(ours)
        # Truncated conversations are others for plain transformers.
        config = ModelConfig(options.model, device="cpu", max_length=length)
        sharing = measure_sharing(RewardScorer.load(config), pairs)
        drawn = random.Random(options.seed).sample(pairs, min(options.pairs or 10**9, len(pairs)))
        compared = compare_ways(config, drawn, ours.rewards)
        largest = max(
            abs(a - b)
            for key, rewards in ours.rewards.items()
            for a, b in zip(rewards, theirs.rewards[key], strict=True)
        )
        summary = json.loads(ours.summary)
        checks = {
            "summary.json is the same byte for byte": ours.summary == theirs.summary,
            "every pair has rewards": not summary["failed"],
            f"rewards of the service and of each way are the same, to {TOLERANCE:g}": largest
            <= TOLERANCE
            >= max(one["largest_difference"] for one in compared.values()),
        }
        return finish(
            checks,
            {
                "trajectories": options.trajectories,
                "items": summary["num_items"],
                "truncated": summary["used"]["num_truncated"],
                "sections": summary["sections"],
                **sharing,
                "here": ours.figures(),
                "service": theirs.figures(),
                "largest_difference": largest,
                "compared_pairs": len(drawn),
                "compared": compared,
            },
        )


if __name__ == "__main__":
    sys.exit(main())
