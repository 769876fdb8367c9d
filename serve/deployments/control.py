"""The control deployment: gives commands of gateways to the replicas of each model.

It is one replica of Ray Serve, which starts with the application, is restarted if it is lost, and
ends with the application. Batches do not pass through it. This module does not import torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from rm_core import ModelInfo, NotReadyError, RewardError
from serve.deployments.router import is_actor_alive
from serve.worker.commands import ModelCommand, ModelStatus, ReplicaReport, TargetState
from serve.worker.replica_group import ReplicaGroup

_NAMESPACE = "serve"


class ModelControl:
    """The `ReplicaGroup` of each model of the application."""

    def __init__(self, bases: Mapping[str, str]) -> None:
        self._groups = {alias: ReplicaGroup(base, _is_alive) for alias, base in bases.items()}

    async def exchange(
        self, alias: str, report: ReplicaReport, wait_s: float
    ) -> TargetState | None:
        """See `ReplicaGroup.exchange`; None as well if the model is being added or removed."""
        group = self._groups.get(alias)
        return None if group is None else await group.exchange(report, wait_s)

    async def get_status(self, alias: str, known: ModelStatus | None) -> ModelStatus | None:
        """See `ReplicaGroup.get_status`; `known` for a model that is being added or removed."""
        group = self._groups.get(alias)
        return known if group is None else group.get_status(known)

    async def run(self, alias: str, command: ModelCommand, gateway: str) -> ModelInfo | RewardError:
        """See `ReplicaGroup.run`; returns errors, because Ray would wrap them in its own."""
        group = self._groups.get(alias)
        if group is None:
            return NotReadyError(f"model {alias!r} is being replaced; try again")
        try:
            return await group.run(command, gateway)
        except RewardError as error:
            return error


async def _is_alive(actor: str) -> bool:
    return await asyncio.to_thread(is_actor_alive, actor, _NAMESPACE)
