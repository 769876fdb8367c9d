"""The executor with a model in this process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE_S

from rm_core import BatchConfig, ModelConfig, NotReadyError, Reward, RewardScorer, ScoreError
from rm_core.inputs.conversations import Messages
from rm_core.model.forward import forward_batch
from rm_core.packing import PrefixTree
from serve.jobs.executors.local import LocalExecutor


def turns(answer: str, question: str = "2+2?") -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


MANY = [turns(f"answer {number}", f"question {number % 7}") for number in range(500)]


def test_local_executor_equals_scorer(
    checkpoint_of: Callable[[str], Path], scorer_of: Callable[..., RewardScorer]
) -> None:
    executor = LocalExecutor(ModelConfig(str(checkpoint_of("qwen3")), device="cpu"))
    try:
        conversations = [turns("a"), turns("b"), turns("x " * 3_000), turns("c", "other?")]
        scored = executor.submit(conversations, "error").result(PATIENCE_S)
        assert scored.results == scorer_of("qwen3").score(conversations)
        assert isinstance(scored.results[2], ScoreError)
        tokens = [r.num_tokens for r in scored.results if isinstance(r, Reward)]
        assert max(tokens) < scored.num_computed_tokens < sum(tokens)
        counts = executor.count_tokens(conversations, "error")
        assert [c for c in counts if isinstance(c, int)] == tokens
        assert counts[2] == scored.results[2]
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("name", "is_kept"), [("qwen3", True), ("llama-v0.2", True), ("gemma2", False)]
)
def test_prompts_are_kept_between_chunks_where_that_changes_no_bit(
    name: str, is_kept: bool, checkpoint_of: Callable[[str], Path]
) -> None:
    """A job that is stopped after the first chunk and run again has the same bytes."""
    config = ModelConfig(str(checkpoint_of(name)), device="cpu")
    question = "Which river " + "flows through a valley and " * 10 + "ends here?"
    chunks = [[turns(f"answer {10 * chunk + i}", question) for i in range(4)] for chunk in (0, 1)]
    uninterrupted, resumed = LocalExecutor(config), LocalExecutor(config)
    try:
        _, warm = [uninterrupted.submit(chunk, "error").result(PATIENCE_S) for chunk in chunks]
        cold = resumed.submit(chunks[1], "error").result(PATIENCE_S)
    finally:
        uninterrupted.close()
        resumed.close()
    assert warm.results == cold.results
    assert (warm.num_computed_tokens < cold.num_computed_tokens / 2) == is_kept


def test_token_budget_of_first_start_is_kept(
    checkpoint_of: Callable[[str], Path],
) -> None:
    config = ModelConfig(str(checkpoint_of("qwen3")), device="cpu")
    for kept, expected in ((None, 4_096), (77, 77)):
        executor = LocalExecutor(config, kept)
        scored = executor.submit([turns("a")], "error").result(PATIENCE_S)
        executor.close()
        assert scored.max_batch_tokens == expected


def test_model_that_cannot_be_loaded_fails_call(tmp_path: Path) -> None:
    executor = LocalExecutor(ModelConfig(str(tmp_path)))
    with pytest.raises(Exception, match=r"config\.json"):
        executor.resolve_identity()
    with pytest.raises(Exception, match=r"config\.json"):
        executor.submit([turns("a")], "error").result(PATIENCE_S)
    executor.close()


def test_close_ends_calls_in_flight(
    checkpoint_of: Callable[[str], Path],
) -> None:
    executor = LocalExecutor(ModelConfig(str(checkpoint_of("qwen3")), device="cpu"))
    executor.submit([turns("a")], "error").result(PATIENCE_S)

    def forward(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        assert executor._closing.wait(PATIENCE_S)
        return forward_batch(loaded, tree, *rest)

    assert executor._scorer is not None
    executor._scorer = RewardScorer(executor._scorer.loaded_model, forward=forward)
    futures = [executor.submit(MANY, "error") for _ in range(40)]
    futures[-1].cancel()
    executor.close()
    finished = [future for future in futures if future.done() and not future.cancelled()]
    assert len(finished) < 40
    assert all(isinstance(f.exception(), NotReadyError | None) for f in finished)
    with pytest.raises(CancelledError):
        futures[-1].result(0)


def test_close_does_not_wait_for_remaining_batches_of_call(
    checkpoint_of: Callable[[str], Path],
) -> None:
    config = ModelConfig(str(checkpoint_of("qwen3")), device="cpu")
    executor = LocalExecutor(config, 77)
    executor.submit([turns("a")], "error").result(PATIENCE_S)
    sizes: list[int] = []
    reached, released = threading.Event(), threading.Event()

    def forward(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        sizes.append(tree.num_tokens)
        reached.set()
        assert released.wait(PATIENCE_S)
        return forward_batch(loaded, tree, *rest)

    assert executor._scorer is not None
    executor._scorer = RewardScorer(executor._scorer.loaded_model, BatchConfig(77), forward)
    future = executor.submit(MANY, "error")
    assert reached.wait(PATIENCE_S)
    closing = threading.Thread(target=executor.close)
    closing.start()
    assert executor._closing.wait(PATIENCE_S)
    released.set()
    closing.join(PATIENCE_S)
    with pytest.raises(NotReadyError, match="the job is stopping"):
        future.result(0)
    assert len(sizes) == 1


def test_call_that_waits_for_device_can_be_cancelled(
    checkpoint_of: Callable[[str], Path],
) -> None:
    executor = LocalExecutor(ModelConfig(str(checkpoint_of("qwen3")), device="cpu"))
    executor.submit([turns("a")], "error").result(PATIENCE_S)
    reached, released = threading.Event(), threading.Event()

    def forward(loaded: Any, tree: PrefixTree, *_: int) -> list[float]:
        reached.set()
        assert released.wait(PATIENCE_S)
        return forward_batch(loaded, tree)

    assert executor._scorer is not None
    executor._scorer = RewardScorer(executor._scorer.loaded_model, forward=forward)
    on_device = executor.submit([turns("b")], "error")
    assert reached.wait(PATIENCE_S)
    waiting = executor.submit([turns("c")], "error")
    for _ in range(3):  # until it is packed and the executor's thread has nothing left to do
        executor._run(asyncio.sleep(0)).result(PATIENCE_S)
        executor._tokenizing.submit(int).result(PATIENCE_S)
    assert not on_device.cancel()
    assert waiting.cancel()
    released.set()
    assert len(on_device.result(PATIENCE_S).results) == 1
    executor.close()


def test_identity_changes_with_everything_that_decides_rewards(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = str(checkpoint_of("qwen3"))
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    plain = LocalExecutor(ModelConfig(folder)).resolve_identity()
    assert plain == LocalExecutor(ModelConfig(folder)).resolve_identity()
    assert json.loads(json.dumps(plain)) == plain
    for other in (
        ModelConfig(str(checkpoint_of("qwen3-tied"))),
        ModelConfig(folder, max_length=9),
        ModelConfig(folder, dtype="bfloat16"),
        ModelConfig(folder, deterministic=True),
        ModelConfig(folder, chat_template=str(template)),
    ):
        assert LocalExecutor(other).resolve_identity() != plain
