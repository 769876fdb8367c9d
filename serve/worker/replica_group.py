"""Gives the commands of gateways to all replicas of a model on Ray: all of them follow, or none.

A command becomes a target, which replicas fetch, try to reach, and report on. So a replica that
starts later, or was lost and replaced, comes to the state of the others. The target is known to
this process, to every replica and to every gateway: a successor of this process gets it from them.
Nothing here depends on Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from rm_core import ModelInfo, NotReadyError, RewardError
from serve.errors import ReloadRefusedError
from serve.worker.commands import ModelCommand, ModelStatus, ReplicaReport, TargetState, Weights

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ReplicaGroup:
    """The replicas of one model. Belongs to one event loop.

    Args:
        base: key of the weights that the settings name; replicas with another one are being
            replaced.
        is_alive: returns whether an actor is alive.
        grace_s: seconds in which replicas that run already report to a new group. Until then it
            gives no targets.
        lease_s: seconds after which staged weights are discarded if the gateway is silent.
        poll_s: seconds after which replicas that have not reported are looked for.
    """

    def __init__(
        self,
        base: str,
        is_alive: Callable[[str], Awaitable[bool]],
        *,
        grace_s: float = 3.0,
        lease_s: float = 60.0,
        poll_s: float = 1.0,
    ) -> None:
        self._base, self._is_alive = base, is_alive
        self._lease_s, self._poll_s = lease_s, poll_s
        self._target = TargetState()
        self._sleep_level = 0
        self._info: ModelInfo | None = None
        self._reports: dict[str, ReplicaReport] = {}
        self._change = asyncio.Event()
        self._is_settled = asyncio.Event()
        self._turn = asyncio.Lock()  # held from `stage` to `switch` or `discard`
        self._step = asyncio.Lock()  # held by one step of a reload
        self._stager: str | None = None  # gateway whose weights are staged
        self._reload = 0  # number of the reload
        self._lease: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        asyncio.get_running_loop().call_later(grace_s, self._settle)

    async def exchange(self, report: ReplicaReport, wait_s: float) -> TargetState | None:
        """Record the report of a replica; return its target once that differs, or after `wait_s`.

        None if the settings of the replica name other weights.
        """
        if report.base != self._base:
            return None
        if report.error is None:
            self._adopt(report.target, report.info)
        self._reports[report.replica] = report
        self._notify()
        await self._is_settled.wait()
        deadline = asyncio.get_running_loop().time() + wait_s
        while self._target == report.target and await self._wait_for_change(
            deadline - asyncio.get_running_loop().time()
        ):
            pass
        return self._target

    def get_status(self, known: ModelStatus | None) -> ModelStatus:
        """Return the state; `known` is the gateway's, maybe from a predecessor of this group."""
        if known is not None and known.base == self._base:
            self._adopt(known.target, known.info)
        return ModelStatus(self._base, self._target, self._sleep_level, self._info)

    async def run(self, command: ModelCommand, gateway: str) -> ModelInfo:
        """Let every replica do what a command says; return once all have; see `Backend.control`.

        Commands of several gateways wait for each other. A command that runs is finished, also if
        the call is cancelled. A replica that dies is waited for until another has its place.

        Raises:
            RewardError: a replica cannot; all replicas are as they were before.
        """
        await self._is_settled.wait()
        match command.action:
            case "sleep" | "wake":
                await self._turn.acquire()
                return await self._finish(
                    self._set_sleep_level(command.level if command.action == "sleep" else 0)
                )
            case "stage":
                await self._turn.acquire()
                self._stager, self._reload = gateway, self._reload + 1
                return await self._finish(self._stage(command))
            case "switch":
                return await self._finish(self._switch(gateway))
            case "discard":
                await self._finish(self._discard(gateway))
                return self._require_info()

    async def _set_sleep_level(self, level: int) -> ModelInfo:
        before = self._target.sleep_level
        level = max(level, before) if level else 0
        self._sleep_level = max(level, before)
        try:
            return await self._bring(sleep_level=level)
        except RewardError:
            with contextlib.suppress(RewardError):
                await self._bring(sleep_level=before)
            raise
        finally:
            self._sleep_level = self._target.sleep_level
            self._turn.release()

    async def _stage(self, command: ModelCommand) -> ModelInfo:
        async with self._step:
            try:
                if self._target.sleep_level:
                    raise ReloadRefusedError(
                        "the model is asleep; wake it before its weights are replaced"
                    )
                serial = self._target.number + 1
                staged = Weights(command.source, command.revision, command.version, serial)
                await self._bring(staged=staged)
                infos = [report.staged for report in self._reports.values() if report.staged]
                if len({info.revision for info in infos}) != 1:
                    raise ReloadRefusedError(
                        f"the replicas read different files in {command.source}: it is being "
                        "written, or its copies on several nodes differ; reload a complete copy"
                    )
            except BaseException:
                await self._end_reload()
                raise
            number = self._reload
            self._lease = asyncio.get_running_loop().call_later(
                self._lease_s, lambda: self._create_task(self._expire(number))
            )
            return infos[0]

    async def _switch(self, gateway: str) -> ModelInfo:
        async with self._step:
            staged = self._target.staged
            if self._stager != gateway or staged is None:
                raise ReloadRefusedError("no weights are staged any more; send the reload again")
            before = self._target
            (revision, *_) = [r.staged.revision for r in self._reports.values() if r.staged]
            try:
                return await self._bring(weights=staged, identity=revision, staged=None)
            except RewardError as error:
                if any(r.error is None for r in self._reports.values()):
                    # The others serve the new weights, and a replica that failed is replaced.
                    logger.exception("a replica could not use its new weights")
                    return self._require_info()
                self._set_target(weights=before.weights, identity=before.identity)
                raise ReloadRefusedError(error.detail) from error
            finally:
                await self._end_reload()

    async def _discard(self, gateway: str) -> None:
        async with self._step:
            if self._stager == gateway:
                await self._end_reload()

    async def _expire(self, number: int) -> None:
        async with self._step:
            if self._stager is not None and self._reload == number:
                logger.warning("staged weights are discarded: their gateway is silent")
                await self._end_reload()

    async def _end_reload(self) -> None:
        """Discard what is still staged, and let other commands run."""
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None
        try:
            if self._target.staged is not None:
                with contextlib.suppress(RewardError):
                    await self._bring(staged=None)
        finally:
            self._stager = None
            self._turn.release()

    async def _bring(self, **changes: Any) -> ModelInfo:
        """Give replicas another target; return once all of them have reached it."""
        self._set_target(**changes)
        while not (self._reports and all(map(self._has_reported, self._reports.values()))):
            if not await self._wait_for_change(self._poll_s):
                await self._forget_dead_replicas()
        for report in self._reports.values():
            if report.error is not None:
                raise report.error
        return self._require_info()

    def _set_target(self, **changes: Any) -> None:
        self._target = replace(self._target, number=self._target.number + 1, **changes)
        self._notify()

    def _has_reported(self, report: ReplicaReport) -> bool:
        return report.target == self._target

    async def _forget_dead_replicas(self) -> None:
        for name, report in list(self._reports.items()):
            if not self._has_reported(report) and not await self._is_alive(name):
                if self._reports.get(name) is report:
                    del self._reports[name]
                logger.info("%s is gone", name)

    def _adopt(self, target: TargetState | None, info: ModelInfo | None) -> None:
        """Take the target that a predecessor of this group gave, if it is a later one."""
        if target is None:
            return
        if target.number > self._target.number:
            self._target, self._sleep_level = target, target.sleep_level
            if self._is_settled.is_set():
                self._drop_orphaned_weights()
            self._notify()
        if info is not None and (target == self._target or self._info is None):
            self._info = info

    def _settle(self) -> None:
        self._drop_orphaned_weights()
        self._is_settled.set()

    def _drop_orphaned_weights(self) -> None:
        """Discard weights whose reload ended with a predecessor of this group."""
        if self._target.staged is not None and self._stager is None:
            self._set_target(staged=None)

    def _require_info(self) -> ModelInfo:
        if self._info is None:
            raise NotReadyError("the model is asleep and was not loaded since; wake it")
        return self._info

    def _create_task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a command to its end, also if this call is cancelled."""
        return await asyncio.shield(self._create_task(work))

    def _notify(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    async def _wait_for_change(self, timeout_s: float) -> bool:
        """Wait for a report or a target; return False after so many seconds."""
        try:
            await asyncio.wait_for(self._change.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
