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
    """What every replica of a model is to do.

    Attributes:
        action: `sleep`, `wake`, or a step of a reload: `stage`, then `switch` or `discard`.
        level: of `sleep`: 1 keeps the weights in the host's memory, 2 drops them.
        source: of `stage`: folder or hub id of the new weights.
        revision: of `stage`: commit of a hub id; None for a folder.
        version: of `stage`: name of the new weights in fingerprints.
    """

    action: Action
    level: int = 1
    source: str = ""
    revision: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that a reload named.

    Attributes:
        source: folder or hub id.
        revision: commit of a hub id; None for a folder.
        version: name of the weights in fingerprints.
        serial: number of the target that staged them: the files of one folder may be replaced.
    """

    source: str
    revision: str | None = None
    version: str | None = None
    serial: int = 0


@dataclass(frozen=True, slots=True)
class TargetState:
    """State that every replica of a model is to have.

    Attributes:
        number: increases with every target, so that the latest one can be found again.
        weights: weights in use; None for those of the settings.
        identity: revision that the fingerprint of `weights` has to have; None if it is not known.
        staged: weights that are loaded and checked, and not in use.
        sleep_level: 0 if the model is awake, else the level of its sleep.
    """

    number: int = 0
    weights: Weights | None = None
    identity: str | None = None
    staged: Weights | None = None
    sleep_level: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a replica says of itself.

    Attributes:
        replica: name of its actor.
        base: key of the weights that its settings name.
        target: target that it reached, or failed to reach; None while it starts.
        error: why it failed.
        info: settings of the model in use; None if none is loaded.
        staged: settings of the model that is staged.
    """

    replica: str
    base: str
    target: TargetState | None = None
    error: RewardError | None = None
    info: ModelInfo | None = None
    staged: ModelInfo | None = None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """State of a model on Ray, as gateways see it.

    Attributes:
        base: key of the weights that its settings name.
        target: state that its replicas are to have.
        sleep_level: level of sleep of which gateways act; a model that wakes sleeps until all
            replicas are awake.
        info: settings of the model in use; None if no replica has reported.
    """

    base: str
    target: TargetState
    sleep_level: int = 0
    info: ModelInfo | None = None
