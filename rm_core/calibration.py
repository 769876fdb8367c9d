"""Calibrations: mean and spread of a model's rewards, so that rewards of several models compare."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from rm_core.errors import ModelLoadError
from rm_core.results import Aggregation
from rm_core.strict_dataclass import read_dataclass
from rm_core.strict_json import parse_strict
from rm_core.types import Fingerprint

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_BLOCK = 65_536
_MAX_FILE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Calibration:
    """Statistics of the rewards of one model.

    Raises:
        ValueError: no rewards, a number that is not finite, or a deviation of 0.
    """

    model: str  # name of the model, for people
    count: int  # number of rewards
    mean: float  # mean of the rewards
    std: float  # population standard deviation of the rewards (divided by `count`), greater than 0
    quantiles: Mapping[str, float]  # reward by probability; interpolated linearly between neighbors
    fingerprint: Fingerprint  # fingerprint of the model that computed the rewards
    # How a step model's rewards of steps became the reward; None for a classifier.
    aggregation: Aggregation | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not all(map(math.isfinite, (self.mean, self.std))):
            raise ValueError("a calibration needs finite rewards, at least one")
        if self.std <= 0:
            raise ValueError(
                f"the standard deviation of {self.count} reward(s) is {self.std:g}, by which "
                "nothing can be divided; calibrate on conversations whose rewards differ"
            )

    def apply(self, reward: float) -> float:
        """Return `(reward - mean) / std`."""
        return (reward - self.mean) / self.std

    def find_difference(self, fingerprint: Fingerprint) -> str | None:
        """Return what makes a model's rewards others than the calibrated ones; None if nothing."""
        for name in ("revision", "template_sha256"):
            own, other = getattr(self.fingerprint, name), getattr(fingerprint, name)
            if own != other:
                return f"{name} {own}, and the model has {other}"
        return None

    def to_json(self) -> str:
        """Return the content of the file that `read_calibration` reads."""
        fields = asdict(self) | {"fingerprint": self.fingerprint.as_dict()}
        return json.dumps(fields, indent=2) + "\n"


def read_calibration(path: str) -> Calibration:
    """Read the file with the JSON of a calibration, or raise `ModelLoadError`."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_FILE_BYTES)
        calibration: Calibration = read_dataclass(Calibration, parse_strict(content.decode()), path)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(
            f"the calibration {path} cannot be used: {error}; write one with `skyreward calibrate`"
        ) from error
    return calibration


class RewardSample:
    """Rewards in a file, of any number.

    Args:
        file: an empty file on disk, which gets 8 bytes a reward.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.count = 0
        self._file = file

    def add(self, rewards: Iterable[float]) -> None:
        """Add rewards."""
        values = array("d", rewards)
        values.tofile(self._file)
        self.count += len(values)

    def calibrate(
        self, model: str, fingerprint: Fingerprint, aggregation: Aggregation | None = None
    ) -> Calibration:
        """Return the calibration of the rewards.

        Raises:
            ValueError: see `Calibration`.
        """
        if not self.count:
            raise ValueError("no conversation has a reward")
        mean, std, quantiles = self.summarize()
        return Calibration(model, self.count, mean, std, quantiles, fingerprint, aggregation)

    def summarize(self) -> tuple[float, float, dict[str, float]]:
        """Return mean, standard deviation and quantiles of the rewards, at least one.

        Sums are exact, and sorting happens in the file.
        """
        self._file.flush()
        values = np.memmap(self._file.name, dtype=np.float64, mode="r+")
        values.sort()
        blocks = range(0, self.count, _BLOCK)
        mean = math.fsum(v for start in blocks for v in values[start : start + _BLOCK].tolist())
        mean /= self.count
        squares = (
            (v - mean) ** 2 for start in blocks for v in values[start : start + _BLOCK].tolist()
        )
        # A mean that is rounded would give equal rewards a tiny deviation.
        std = math.sqrt(math.fsum(squares) / self.count) if values[0] < values[-1] else 0.0
        quantiles = {f"{q:g}": _interpolate(values, q * (self.count - 1)) for q in QUANTILES}
        return mean, std, quantiles


def _interpolate(ordered: NDArray[np.float64], position: float) -> float:
    """Return the value at a position between two indices."""
    lower = math.floor(position)
    low, high = float(ordered[lower]), float(ordered[min(lower + 1, len(ordered) - 1)])
    return low + (position - lower) * (high - low)
