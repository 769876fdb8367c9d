"""Sequences that are read at several tokens: packed, cached, computed and put together."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest
from dispatcher_harness import FINGERPRINT
from examples import limit_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_core import (
    BatchConfig,
    Encoded,
    RankedAnswer,
    Reward,
    RewardScorer,
    ScoreError,
    Verdict,
    aggregate,
    cache_keys,
    combine_results,
    merge_results,
    pack,
    rank_answers,
)
from rm_core.packing import Readouts, TokenIds
from rm_core.prefix_cache import PrefixCache
from serve.scoring.served_model import find_missing
from serve.scoring.tokenization import read_every_token
from serve.worker.worker import SequenceBatch, Worker

IDS = tuple(range(3, 60))
Input = tuple[TokenIds, Readouts]


@st.composite
def inputs(draw: st.DrawFn) -> list[Input]:
    """Sequences of few different tokens, each with readouts of which the last is its last token."""
    sequences = draw(st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=9), min_size=1))
    drawn = []
    for ids in sequences:
        others = draw(st.sets(st.integers(0, len(ids) - 1)))
        readouts = tuple(sorted(others | {len(ids) - 1})) if draw(st.booleans()) else ()
        drawn.append((tuple(ids), readouts))
    return drawn


@given(inputs=inputs(), budget=st.integers(1, 30), num_outputs=st.integers(1, 2))
def test_outputs_return_to_the_readouts_of_their_sequences(
    inputs: list[Input], budget: int, num_outputs: int
) -> None:
    packing = pack(
        [ids for ids, _ in inputs], budget, readouts=[readouts for _, readouts in inputs]
    )
    outputs = []
    for tree in packing.batches:
        path_of = {
            segment.start + i: tree.sequences[segment.sequence][: segment.depth + i + 1]
            for segment in tree.segments
            for i in range(len(segment.token_ids))
        }
        for rows in tree.read_rows:
            outputs += [(path_of[row], n) for row in rows for n in range(num_outputs)]
    assert packing.restore(outputs) == [
        (ids[: position + 1], n)
        for ids, readouts in inputs
        for position in readouts or (len(ids) - 1,)
        for n in range(num_outputs)
    ]


@given(inputs=inputs(), cached=st.integers(0, 9))
def test_token_that_is_read_is_never_taken_from_the_prefix_cache(
    inputs: list[Input], cached: int
) -> None:
    import torch

    cache = PrefixCache(64, 1, 1, torch.float32, [torch.device("cpu")], min_tokens=1)
    warm = pack([ids for ids, _ in inputs], 1000).batches[0]
    cache.commit(cache.acquire(warm, [min(cached, len(ids)) for ids in warm.sequences]))
    (tree,) = pack([i for i, _ in inputs], 1000, readouts=[r for _, r in inputs]).batches
    row = cache.acquire(tree, [0] * len(tree.sequences)).tree
    tokens = [token for segment in row.row_segments for token in segment.token_ids]
    for sequence, readouts, rows in zip(row.sequences, row.readouts, row.read_rows, strict=True):
        read = readouts or (len(sequence) - 1,)
        assert [tokens[row] for row in rows] == [sequence[position] for position in read]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_readouts_have_the_rewards_of_prefixes(
    scorer_of: Callable[[str], RewardScorer], cache_bytes: int
) -> None:
    loaded = scorer_of("qwen3").loaded_model
    scorer = RewardScorer(loaded, BatchConfig(256, prefix_cache_bytes=cache_bytes))
    sequences = [IDS, (*IDS[:40], 9, 9, 9), IDS[:7], IDS]
    readouts: list[Readouts] = [(0, 20, 39, 56), (5, 42), (), (3, 56)]
    alone = [
        scorer.score_ids([ids[: position + 1]]).outputs[0]
        for ids, positions in zip(sequences, readouts, strict=True)
        for position in positions or (len(ids) - 1,)
    ]
    for _ in range(3):
        scored = scorer.score_ids(sequences, readouts)
        assert list(scored.outputs) == pytest.approx(alone, abs=1e-4, rel=0)
    assert scored.num_computed_tokens + scored.num_prefix_tokens == len(IDS) + 3


@pytest.fixture(scope="module")
def fuzzed_scorers(scorer_of: Callable[[str], RewardScorer]) -> list[RewardScorer]:
    loaded = scorer_of("qwen3").loaded_model
    sizes = (0, 1 << 14, 1 << 20)  # none, one that evicts all the time, one that keeps everything
    return [RewardScorer(loaded, BatchConfig(48, prefix_cache_bytes=size)) for size in sizes]


@pytest.mark.hypothesis
@settings(deadline=None, max_examples=limit_examples(40))
@given(inputs=inputs(), prefix=st.integers(0, 40))
def test_drawn_readouts_have_the_rewards_of_prefixes(
    fuzzed_scorers: list[RewardScorer], inputs: list[Input], prefix: int
) -> None:
    """Prefixes are long enough to be kept, and each draw finds those of the draws before it."""
    items: list[Input] = []
    for suffix, read in inputs:
        ids = (*IDS[:prefix], *suffix)
        # Some readouts are within the prefix.
        within = {position * prefix // 9 for position in read[:-1]}
        items.append((ids, tuple(sorted({*within, len(ids) - 1})) if read else ()))
    prefixes = [ids[: position + 1] for ids, read in items for position in read or (len(ids) - 1,)]
    plain = fuzzed_scorers[0]
    alone = {ids: plain.score_ids([ids]).outputs[0] for ids in set(prefixes)}
    expected = [alone[ids] for ids in prefixes]
    for scorer in fuzzed_scorers:
        scored = scorer.score_ids([ids for ids, _ in items], [read for _, read in items])
        assert list(scored.outputs) == pytest.approx(expected, abs=1e-4, rel=0)


def test_unknown_token_is_an_error_at_each_readout(
    scorer_of: Callable[[str], RewardScorer],
) -> None:
    scorer = scorer_of("qwen3")
    outputs = scorer.score_ids([(10**9, 5, 6), IDS], [(0, 2), (1, 56)]).outputs
    assert [isinstance(output, ScoreError) for output in outputs] == [True, True, False, False]


def test_worker_passes_readouts_on(scorer_of: Callable[[str], RewardScorer]) -> None:
    loaded = scorer_of("qwen3").loaded_model
    scorer = RewardScorer(loaded, BatchConfig(256, prefix_cache_bytes=0))
    batch = SequenceBatch((IDS, IDS[:9]), readouts=((4, 56), ()))
    expected = scorer.score_ids(batch.sequences, batch.readouts).outputs
    worker = Worker(scorer)

    async def run() -> None:
        assert (await worker.run_batch(batch)).outputs == expected
        results = [r async for r in worker.run_one_by_one(batch) if r is not None]
        outputs = list(itertools.chain.from_iterable(r.outputs for r in results))
        assert outputs == pytest.approx(list(expected), abs=1e-5, rel=0)

    asyncio.run(run())
    worker.close()


def test_keys_of_readouts_are_those_of_prefixes() -> None:
    keys = cache_keys(FINGERPRINT, [(1, 2, 3), (4,)], "", [(0, 2), ()], num_outputs=2)
    assert keys[0::2] == cache_keys(FINGERPRINT, [(1,), (1, 2, 3), (4,)])
    assert len(set(keys)) == len(keys) == 6


def test_only_missing_readouts_are_computed() -> None:
    missing = find_missing(
        [(1, 2, 3, 4), (5, 6), (7, 8)], [(0, 1, 3), (), (0, 1)], [0.1, None, 0.3, None, 1.0, 2.0], 1
    )
    assert missing == [((1, 2), (1,), [1]), ((5, 6), (), [3])]
    # A readout with two outputs is computed again as a whole.
    assert find_missing([(1, 2)], [(0, 1)], [0.1, None, 0.3, 0.4], 2) == [((1,), (0,), [0, 1])]


def test_step_rewards_are_aggregated() -> None:
    item = Encoded("", (1, 2, 3), (0, 2))
    failure = ScoreError("scoring_failed", "why")
    logits = (1.0986122886681098, -1.0986122886681098)  # of 0.75 and 0.25
    expected_rewards = {"last": 0.25, "min": 0.25, "mean": 0.5, "product": 0.1875}
    for aggregation, expected in expected_rewards.items():
        result, error, other = merge_results(
            [item, failure, item],
            [*logits, 0.0, failure],
            "step",
            aggregation,  # type: ignore[arg-type]
        )
        assert isinstance(result, Reward)
        assert result.step_rewards == pytest.approx([0.75, 0.25])
        assert result.reward == pytest.approx(expected)
        assert error == other == failure
    assert aggregate([0.5], "product") == 0.5


def test_judge_has_log_odds_and_label_mass() -> None:
    (verdict,) = merge_results([Encoded("", (1,), (0,))], [1.25, -0.5], "judge")
    assert isinstance(verdict, Reward)
    assert (verdict.reward, verdict.label_mass) == (1.25, pytest.approx(0.6065306597))
    assert verdict.warnings == ()


def test_low_label_mass_of_either_order_gives_a_warning() -> None:
    item = Encoded("", (1,), (0,))
    high, low = merge_results([item, item], [1.25, -0.5, 1.25, -0.7], "judge")
    for first, second in itertools.product((high, low), repeat=2):
        verdict = combine_results(first, second)
        assert isinstance(verdict, Verdict)
        (ranked, _) = rank_answers(2, [verdict])
        assert isinstance(ranked, RankedAnswer)
        assert len(verdict.warnings) == (low in (first, second))
        assert ranked.warnings == verdict.warnings
        assert all(warning.startswith("low_label_mass: ") for warning in verdict.warnings)


def test_raw_outputs_of_every_token() -> None:
    item = read_every_token(Encoded("", (1, 2, 3), (2,)))
    (result,) = merge_results([item], [3.0, -1.0, 2.0], "step", raw=True)
    assert isinstance(result, Reward)
    assert (result.reward, result.step_rewards) == (2.0, (3.0, -1.0, 2.0))
