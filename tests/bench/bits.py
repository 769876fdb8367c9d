"""Whether a reward depends on its batch or on the prefix cache, by a single bit.

The conversations of three workloads are scored one by one, together, in small batches, and with
their prompts in the cache. Needs a model of `throughput.py --only model --checkpoint FOLDER`.

    python tests/bench/bits.py --checkpoint FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import workloads
from gateway import DATA
from workloads import Conversations

from rm_core import BatchConfig, ModelConfig, Reward, RewardScorer

WORKLOADS = (workloads.rm_bench_pairs, workloads.rmb_best_of_n, workloads.arriving)


def main() -> None:
    """Print for each workload and way how many rewards differ from those one by one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of benchmark files")
    parser.add_argument("--checkpoint", required=True, help="folder of the model")
    options = parser.parse_args()
    loaded = RewardScorer.load(ModelConfig(options.checkpoint, dtype="float32")).loaded_model
    print(f"batch-invariant: {loaded.batch_invariant}")
    ways = {
        "together": BatchConfig(prefix_cache_bytes=0),
        "in small batches": BatchConfig(max_batch_tokens=3_300, prefix_cache_bytes=0),
        "with the cache": BatchConfig(),
    }
    for build in WORKLOADS:
        conversations = build(options.data)
        scorer = RewardScorer(loaded, BatchConfig(prefix_cache_bytes=0))
        alone = [reward for row in conversations for reward in score(scorer, [row])]
        for way, batching in ways.items():
            scorer = RewardScorer(loaded, batching)
            for _ in range(2):  # the second time, prompts are cached
                rewards = score(scorer, conversations)
            differ = sum(a != b for a, b in zip(rewards, alone, strict=True))
            print(f"{build.__name__}, {way}: {differ} of {len(alone)} differ")


def score(scorer: RewardScorer, conversations: Conversations) -> list[float]:
    results = scorer.score(conversations)
    assert all(isinstance(result, Reward) for result in results)
    return [result.reward for result in results if isinstance(result, Reward)]


if __name__ == "__main__":
    main()
