"""Commands that a gateway gives to every replica of a model, and what replicas report.

On Ray, a command becomes a `TargetState`, which `serve.worker.replica_group` gives to all replicas
and `serve.worker.reconcile` reaches in each. All of these are sent between processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rm_core import ModelInfo, RewardError

Action: TypeAlias = Literal["sleep", "wake", "stage", "switch", "discard"]


@dataclass(frozen=True, slots=True)
class ModelCommand:
    """What every replica of a model is to do."""

    action: Action  # `sleep`, `wake`, or a step of a reload: `stage`, then `switch` or `discard`
    level: int = 1  # of `sleep`: 1 keeps the weights in the host's memory, 2 drops them
    source: str = ""  # of `stage`: folder or hub id of the new weights
    revision: str | None = None  # of `stage`: commit of a hub id; None for a folder
    version: str | None = None  # of `stage`: name of the new weights in fingerprints


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that a reload named."""

    source: str  # folder or hub id
    revision: str | None = None  # commit of a hub id; None for a folder
    version: str | None = None  # name of the weights in fingerprints
    # Number of the target that staged them: the files of one folder may be replaced.
    serial: int = 0


@dataclass(frozen=True, slots=True)
class TargetState:
    """State that every replica of a model is to have."""

    number: int = 0  # increases with every target, so that the latest one can be found again
    weights: Weights | None = None  # weights in use; None for those of the settings
    # Revision that the fingerprint of `weights` has to have; None if it is not known.
    identity: str | None = None
    staged: Weights | None = None  # weights that are loaded and checked, and not in use
    sleep_level: int = 0  # 0 if the model is awake, else the level of its sleep


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a replica says of itself."""

    replica: str  # name of its actor
    base: str  # key of the weights that its settings name
    # Target that it reached, or failed to reach; None while it starts.
    target: TargetState | None = None
    error: RewardError | None = None  # why it failed
    info: ModelInfo | None = None  # settings of the model in use; None if none is loaded
    staged: ModelInfo | None = None  # settings of the model that is staged


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """State of a model on Ray, as gateways see it."""

    base: str  # key of the weights that its settings name
    target: TargetState  # state that its replicas are to have
    # Level of sleep of which gateways act; a model that wakes sleeps until all replicas are awake.
    sleep_level: int = 0
    info: ModelInfo | None = None  # settings of the model in use; None if no replica has reported
