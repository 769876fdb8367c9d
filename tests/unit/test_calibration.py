"""Statistics of rewards, and the file of a calibration."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rm_core import Fingerprint, ModelLoadError
from rm_core.calibration import QUANTILES, RewardSample, read_calibration

FINGERPRINT = Fingerprint("r", "t", "float32", "sdpa", version="v")


def test_statistics_of_a_million_rewards_are_exact(tmp_path: Path) -> None:
    """Far from 0, where a sum of squares in float64 would lose the deviation."""
    rewards = np.random.default_rng(0).normal(3e7, 1.5, 1_000_000).astype(np.float64)
    tracemalloc.start()
    with (tmp_path / "rewards").open("wb") as file:
        sample = RewardSample(file)
        for block in np.split(rewards, 100):
            sample.add(block.tolist())
        calibration = sample.calibrate("m", FINGERPRINT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23
    assert calibration.count == 1_000_000
    assert calibration.mean == pytest.approx(float(rewards.mean(dtype=np.longdouble)), abs=1e-6)
    assert calibration.std == pytest.approx(float(rewards.std(dtype=np.longdouble)), abs=1e-6)
    expected = np.quantile(rewards, QUANTILES)
    assert list(calibration.quantiles.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    calibrated = np.array([calibration.apply(reward) for reward in rewards])
    assert abs(calibrated.mean()) < 1e-6
    assert abs(calibrated.std() - 1) < 1e-6


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        ([], "no conversation has a reward"),
        ([2.5], r"deviation of 1 reward\(s\) is 0"),
        ([0.1] * 7, r"deviation of 7 reward\(s\) is 0"),
    ],
)
def test_rewards_without_a_spread_are_refused(
    tmp_path: Path, rewards: list[float], reason: str
) -> None:
    with (tmp_path / "rewards").open("wb") as file:
        sample = RewardSample(file)
        sample.add(rewards)
        with pytest.raises(ValueError, match=reason):
            sample.calibrate("m", FINGERPRINT)


def test_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    with (tmp_path / "rewards").open("wb") as file:
        sample = RewardSample(file)
        sample.add([1.0, 2.0])
        sample.add([4.5])
        calibration = sample.calibrate("m", FINGERPRINT, "min")
    path = tmp_path / "c.json"
    path.write_text(calibration.to_json())
    assert read_calibration(str(path)) == calibration
    assert calibration.quantiles["0.75"] == 3.25


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"std": 0.0}, "deviation of 3 reward"),
        ({"std": -1.0}, "nothing can be divided"),
        ({"mean": "1"}, "a value of type float"),
        ({"count": 0}, "at least one"),
        ({"more": 1}, "unknown key 'more'"),
        ({"aggregation": "sum"}, "one of 'last'"),
        (None, "No such file"),
    ],
)
def test_bad_file_is_refused(tmp_path: Path, change: dict[str, Any] | None, reason: str) -> None:
    path = tmp_path / "c.json"
    if change is not None:
        fields = {"model": "m", "count": 3, "mean": 0.0, "std": 1.0, "quantiles": {}}
        fields["fingerprint"] = FINGERPRINT.as_dict()
        path.write_text(json.dumps(fields | change))
    with pytest.raises(ModelLoadError, match=reason) as caught:
        read_calibration(str(path))
    assert str(path) in caught.value.detail
