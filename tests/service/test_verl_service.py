"""verl's own managers on Ray, with the service as the reward model that they start."""

from __future__ import annotations

import pytest
from peer_service import ANSWERS, QUESTION, conversation
from peers import run_trainer_script

from rm_core import ModelConfig, Reward, RewardScorer, seeds_dir

pytestmark = pytest.mark.slow


def test_verl_starts_wakes_and_ends_the_service() -> None:
    folder = str(seeds_dir() / "demo")
    answer = run_trainer_script("verl_manager", folder, QUESTION, *ANSWERS)
    scorer = RewardScorer.load(ModelConfig(folder, device="cpu", dtype="float32"))
    expected = scorer.score([conversation(answer) for answer in ANSWERS])
    assert answer["rewards"] == pytest.approx(
        [result.reward for result in expected if isinstance(result, Reward)], abs=1e-5
    )
    assert answer["states"] == ["asleep", "asleep"]
    assert answer["is_ended"]
