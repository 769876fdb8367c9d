"""Commands that a gateway gives to every replica of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Action: TypeAlias = Literal["sleep", "wake", "stage", "switch", "discard"]


@dataclass(frozen=True, slots=True)
class ModelCommand:
    """What every replica of a model is to do. Is sent between processes.

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
