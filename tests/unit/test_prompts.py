"""What the scheduler knows of prefix caches: the size of batches, their replica, and salts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rm_core.packing import MAX_KEYS_PER_TOKEN
from serve.scheduler.batching import Prompt, PromptIndex, form_batch
from serve.worker.worker import SequenceBatch

FIRST, SECOND, THIRD = (Prompt.of((index,) * 10, 10, "") for index in range(3))


def test_prompt_index_forgets_the_prompts_that_were_sent_first() -> None:
    index = PromptIndex()
    index.max_tokens = 20
    for prompt in (FIRST, SECOND, FIRST, THIRD):
        index.add(prompt)
    assert [index.count_cached(prompt) for prompt in (FIRST, SECOND, THIRD)] == [10, 0, 10]
    assert index.count_cached(None) == 0
    assert index.count_cached(Prompt.of((0,) * 10, 10, "another client")) == 0


def test_prompt_index_of_a_model_without_a_cache_is_empty() -> None:
    index = PromptIndex()
    index.add(FIRST)
    assert index.count_cached(FIRST) == 0


def test_prompt_index_finds_the_replica_with_most_tokens() -> None:
    index = PromptIndex()
    index.max_tokens = 1_000
    for prompt, replica in ((FIRST, "a"), (SECOND, "b"), (THIRD, "b")):
        index.add(prompt)
        assert index.find_replica([prompt]) == ""
        index.add(prompt, replica)
    assert index.find_replica([FIRST, None, FIRST, FIRST, SECOND, THIRD]) == "b"
    index.add(FIRST)  # sent again, not computed yet
    assert index.find_replica([FIRST]) == "a"


def test_batch_is_filled_with_what_is_left_to_compute() -> None:
    pending = [(prompt, *range(100, 109), answer) for prompt in range(30) for answer in (1, 2)]
    assert form_batch(pending, 24).num_tokens == 24
    batch = form_batch(pending, 24, {sequence: 10 for sequence in pending})
    assert len(batch.sequences) == 16
    assert batch.num_tokens == 16  # one token of each answer
    assert batch.num_keys == MAX_KEYS_PER_TOKEN * 24  # eight prompts


@pytest.mark.parametrize(
    ("preferred", "num_calls", "first"),
    [
        ("b", {"a": 0, "b": 0}, "b"),
        ("b", {"a": 2, "b": 1}, "b"),
        ("b", {"a": 0, "b": 1}, None),  # nobody waits for a prompt
        ("b", {"a": 0}, None),  # not known yet
        ("gone", {"a": 0, "b": 0}, None),
        ("", {"a": 0, "b": 0}, None),
    ],
)
def test_router_prefers_the_replica_with_the_prompts_if_it_is_free(
    preferred: str, num_calls: dict[str, int], first: str | None
) -> None:
    from serve.deployments.router import LeastLoadedRouter

    router: Any = object.__new__(LeastLoadedRouter)
    replicas = [
        SimpleNamespace(replica_id=SimpleNamespace(unique_id=name), name=name) for name in "ab"
    ]
    calls = {r.replica_id.unique_id: num_calls.get(r.name) for r in replicas}
    router._replica_queue_len_cache = SimpleNamespace(get=lambda key: calls[key.unique_id])
    request = SimpleNamespace(args=[SequenceBatch(((1, 2),), preferred_replica=preferred)])
    found = router._find_preferred(replicas, request)
    assert (found and found.name) == first
    assert router._find_preferred(replicas, SimpleNamespace(args=[[(1, 2)]])) is None
