"""Commands to all replicas of a model: all follow or none does, whichever of them is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from fakes import INFO
from waiting import VirtualTime

from rm_core import ModelError, ModelInfo, ModelLoadError, RewardError
from serve.errors import ReloadRefusedError
from serve.worker.commands import ModelCommand, ModelStatus, ReplicaReport, TargetState, Weights
from serve.worker.replica_group import ReplicaGroup

STAGE = ModelCommand("stage", source="/steps/1", version="step-1")
SWITCH, DISCARD = ModelCommand("switch"), ModelCommand("discard")
SLEEP, WAKE = ModelCommand("sleep"), ModelCommand("wake")


def info_of(weights: Weights | None) -> ModelInfo:
    if weights is None:
        return INFO
    return replace(INFO, revision=f"revision of {weights.source}", version=weights.version)


RELOADED = info_of(Weights(STAGE.source, None, STAGE.version))


class Replica:
    """A replica that follows a group, and fails at targets that a test chooses.

    Attributes:
        state: last state that was reached.
        history: every state that was reached.
        fails: returns the error at a target, or None.
        gate: what is waited for before a target is reached.
    """

    def __init__(self, name: str, base: str = "base") -> None:
        self.name, self.base = name, base
        self.state: TargetState | None = None
        self.history: list[TargetState] = []
        self.fails: Callable[[TargetState], RewardError | None] = lambda _: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.revision: str | None = None
        self.task: asyncio.Task[None] | None = None

    def follow(self, group: ReplicaGroup) -> None:
        """Follow a group, or the successor of the group that was followed."""
        if self.task is not None:
            self.task.cancel()
        self.task = asyncio.create_task(self._follow(group))

    def die(self) -> None:
        assert self.task is not None
        self.task.cancel()

    @property
    def is_alive(self) -> bool:
        return self.task is not None and not self.task.cancelling()

    async def _follow(self, group: ReplicaGroup) -> None:
        report = self._report(self.state)
        while True:
            target = await group.exchange(report, 10.0)
            if target is None:
                await asyncio.sleep(1)
            elif target != report.target:
                await self.gate.wait()
                if error := self.fails(target):
                    report = self._report(target, error)
                else:
                    self.state = target if self.state else replace(target, staged=None)
                    self.history.append(self.state)
                    report = self._report(self.state)

    def _report(
        self, target: TargetState | None, error: RewardError | None = None
    ) -> ReplicaReport:
        staged = None
        if target is not None and target.staged is not None and error is None:
            staged = info_of(target.staged)
            staged = replace(staged, revision=self.revision or staged.revision)
        info = None if self.state is None else info_of(self.state.weights)
        return ReplicaReport(self.name, self.base, target, error, info, staged)


class Replicas(dict[str, Replica]):
    """Replicas by name, and whether they live."""

    async def is_alive(self, name: str) -> bool:
        return name in self and self[name].is_alive

    def start(self, group: ReplicaGroup, name: str, base: str = "base") -> Replica:
        self[name] = Replica(name, base)
        self[name].follow(group)
        return self[name]

    def build_group(self) -> ReplicaGroup:
        return ReplicaGroup("base", self.is_alive)


@contextlib.asynccontextmanager
async def two_replicas() -> AsyncIterator[tuple[ReplicaGroup, Replicas, Replica, Replica]]:
    replicas = Replicas()
    group = replicas.build_group()
    yield group, replicas, replicas.start(group, "a"), replicas.start(group, "b")
    for replica in replicas.values():
        replica.die()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test on a clock that jumps."""
    with asyncio.Runner(loop_factory=VirtualTime) as runner:

        async def limited() -> None:
            await asyncio.wait_for(test(), 10_000)

        runner.run(limited())


def version_of(replica: Replica) -> str | None:
    assert replica.state
    return replica.state.weights and replica.state.weights.version


async def reload(group: ReplicaGroup, gateway: str = "one") -> ModelInfo:
    await group.run(STAGE, gateway)
    return await group.run(SWITCH, gateway)


def test_reload_stages_everywhere_before_any_replica_switches() -> None:
    async def test() -> None:
        async with two_replicas() as (group, _, one, two):
            two.gate.clear()
            staging = asyncio.create_task(group.run(STAGE, "one"))
            await asyncio.sleep(100)
            assert not staging.done()
            assert one.state
            assert one.state.staged
            assert two.state is None  # it is alive, so it is waited for
            two.gate.set()
            assert (await staging).version == "step-1"
            assert (one.state.weights, group.get_status(None).info) == (None, INFO)
            assert (await group.run(SWITCH, "one")).version == "step-1"
            assert one.state == two.state
            assert (version_of(one), one.state.staged) == ("step-1", None)
            assert one.state.identity == "revision of /steps/1"
            assert group.get_status(None).info == RELOADED

    run(test)


@pytest.mark.parametrize("error", [ReloadRefusedError("a shard is missing"), ModelError("oom")])
def test_refused_weights_are_discarded_everywhere(error: RewardError) -> None:
    async def test() -> None:
        async with two_replicas() as (group, _, one, two):
            two.fails = lambda target: error if target.staged else None
            with pytest.raises(type(error), match=error.detail):
                await group.run(STAGE, "one")
            await group.run(DISCARD, "one")  # a gateway does so after every error
            assert one.state == two.state
            assert one.state
            assert (one.state.weights, one.state.staged) == (None, None)
            two.fails = lambda _: None
            assert (await reload(group, "two")).version == "step-1"

    run(test)


def test_weights_that_differ_between_nodes_are_refused() -> None:
    async def test() -> None:
        async with two_replicas() as (group, _, one, two):
            two.revision = "another"
            with pytest.raises(ReloadRefusedError, match="read different files"):
                await group.run(STAGE, "one")
            assert one.state
            assert one.state.staged is None

    run(test)


def test_sleep_and_wake_are_undone_where_one_replica_fails() -> None:
    async def test() -> None:
        async with two_replicas() as (group, _, one, two):
            two.fails = lambda target: ModelError("stuck") if target.sleep_level else None
            with pytest.raises(ModelError, match="stuck"):
                await group.run(SLEEP, "one")
            assert [state.sleep_level for state in one.history][-2:] == [1, 0]
            assert group.get_status(None).sleep_level == 0
            two.fails = lambda _: None
            await group.run(ModelCommand("sleep", 2), "one")
            await group.run(SLEEP, "one")
            assert one.state
            assert one.state.sleep_level == 2
            two.fails = lambda t: None if t.sleep_level else ModelLoadError("it has changed")
            with pytest.raises(ModelLoadError, match="it has changed"):
                await group.run(WAKE, "one")
            assert one.state == two.state
            assert (one.state.sleep_level, group.get_status(None).sleep_level) == (2, 2)
            with pytest.raises(ReloadRefusedError, match="asleep"):
                await group.run(STAGE, "one")

    run(test)


def test_model_that_wakes_sleeps_for_gateways_until_all_replicas_are_awake() -> None:
    async def test() -> None:
        async with two_replicas() as (group, _, one, two):
            await group.run(SLEEP, "one")
            two.gate.clear()
            waking = asyncio.create_task(group.run(WAKE, "one"))
            await asyncio.sleep(100)
            assert one.state
            assert one.state.sleep_level == 0
            assert group.get_status(None).sleep_level == 1
            two.gate.set()
            await waking
            assert group.get_status(None).sleep_level == 0

    run(test)


def test_lost_replica_is_not_waited_for_and_its_successor_is() -> None:
    async def test() -> None:
        async with two_replicas() as (group, replicas, one, two):
            await reload(group)
            two.gate.clear()
            sleeping = asyncio.create_task(group.run(SLEEP, "one"))
            await asyncio.sleep(100)
            two.die()
            assert (await sleeping).version == "step-1"
            one.die()
            waking = asyncio.create_task(group.run(WAKE, "one"))
            await asyncio.sleep(100)
            assert not waking.done()  # no replica is left
            three = replicas.start(group, "c")
            assert (await waking).version == "step-1"
            assert three.state
            assert (version_of(three), three.state.sleep_level) == ("step-1", 0)

    run(test)


def test_replica_that_starts_between_stage_and_switch_gets_the_new_weights() -> None:
    async def test() -> None:
        async with two_replicas() as (group, replicas, one, _):
            await group.run(STAGE, "one")
            three = replicas.start(group, "c")
            three.gate.clear()
            switching = asyncio.create_task(group.run(SWITCH, "one"))
            await asyncio.sleep(100)
            assert not switching.done()
            three.gate.set()
            await switching
            assert three.state == one.state

    run(test)


def test_commands_of_two_gateways_wait_for_each_other() -> None:
    async def test() -> None:
        async with two_replicas() as (group, _, one, _):
            await group.run(STAGE, "one")
            sleeping = asyncio.create_task(group.run(SLEEP, "two"))
            await asyncio.sleep(10)
            assert not sleeping.done()
            await group.run(DISCARD, "two")  # not the weights of this gateway
            with pytest.raises(ReloadRefusedError, match="no weights are staged any more"):
                await group.run(SWITCH, "two")
            assert one.state
            assert one.state.staged
            await group.run(SWITCH, "one")
            await sleeping
            assert (version_of(one), one.state.sleep_level) == ("step-1", 1)

    run(test)


def test_staged_weights_of_a_lost_gateway_are_discarded() -> None:
    async def test() -> None:
        async with two_replicas() as (group, _, one, two):
            await group.run(STAGE, "one")
            await group.run(SLEEP, "two")  # waits for as long as the first one may be silent
            assert one.state == two.state
            assert one.state
            assert one.state.staged is None
            with pytest.raises(ReloadRefusedError, match="send the reload again"):
                await group.run(SWITCH, "one")
            await group.run(WAKE, "two")
            await reload(group, "one")

    run(test)


def test_cancelled_call_leaves_no_staged_weights() -> None:
    async def test() -> None:
        async with two_replicas() as (group, _, one, two):
            two.gate.clear()
            staging = asyncio.create_task(group.run(STAGE, "one"))
            waiting = asyncio.create_task(group.run(STAGE, "two"))
            await asyncio.sleep(1)
            waiting.cancel()  # never runs
            staging.cancel()  # is finished
            discarding = asyncio.create_task(group.run(DISCARD, "one"))
            await asyncio.sleep(1)
            two.gate.set()
            await discarding
            assert one.state == two.state
            assert one.state
            assert one.state.staged is None
            await reload(group, "three")

    run(test)


@pytest.mark.parametrize("num_failing", [1, 2])
def test_replica_that_cannot_switch_is_left_behind_unless_none_can(num_failing: int) -> None:
    async def test() -> None:
        async with two_replicas() as (group, _, one, two):
            await group.run(STAGE, "one")
            for replica in [one, two][:num_failing]:
                replica.fails = lambda target: ModelError("NaN") if target.weights else None
            if num_failing == 1:
                assert (await group.run(SWITCH, "one")).version == "step-1"
                assert two.state
                assert version_of(two) == "step-1"
            else:
                with pytest.raises(ReloadRefusedError, match="NaN"):
                    await group.run(SWITCH, "one")
                await group.run(SLEEP, "one")
                assert two.state
                assert two.state.weights is None

    run(test)


@pytest.mark.parametrize("witness", ["replica", "gateway"])
def test_successor_of_a_lost_group_gets_the_state(witness: str) -> None:
    async def test() -> None:
        async with two_replicas() as (group, replicas, one, two):
            await reload(group)
            await group.run(STAGE, "one")
            status = group.get_status(None)
            one.die()
            successor = replicas.build_group()
            three = replicas.start(successor, "c")
            if witness == "replica":
                two.follow(successor)
            else:
                two.die()
                assert successor.get_status(status).info == RELOADED
            await successor.run(WAKE, "two")
            assert three.state
            assert (version_of(three), three.state.staged) == ("step-1", None)
            if witness == "replica":
                assert two.state == three.state

    run(test)


def test_replicas_and_gateways_of_other_settings_do_not_count() -> None:
    async def test() -> None:
        async with two_replicas() as (group, replicas, _, _):
            old = replicas.start(group, "old", base="old settings")
            state = TargetState(7, weights=Weights("/steps/1"), sleep_level=2)
            assert group.get_status(ModelStatus("old settings", state, 2)).target.number == 0
            await group.run(SLEEP, "one")
            assert old.state is None

    run(test)


def test_reload_of_the_same_folder_is_another_reload() -> None:
    async def test() -> None:
        async with two_replicas() as (group, _, one, two):
            await reload(group)
            assert one.state
            before = one.state.weights
            await reload(group)
            assert one.state == two.state
            assert one.state.weights != before

    run(test)


def test_command_is_undone_also_if_its_call_was_cancelled() -> None:
    async def test() -> None:
        async with two_replicas() as (group, _, one, two):
            two.gate.clear()
            two.fails = lambda target: ModelError("stuck") if target.sleep_level else None
            sleeping = asyncio.create_task(group.run(SLEEP, "one"))
            await asyncio.sleep(100)
            sleeping.cancel()
            await asyncio.sleep(1)
            two.gate.set()
            await asyncio.sleep(100)
            assert [state.sleep_level for state in one.history][-2:] == [1, 0]

    run(test)


def test_replica_that_starts_before_others_report_to_a_successor_loads_their_weights() -> None:
    async def test() -> None:
        async with two_replicas() as (group, replicas, _, two):
            await reload(group)
            successor = replicas.build_group()
            three = replicas.start(successor, "c")
            await asyncio.sleep(1)
            two.follow(successor)
            await asyncio.sleep(100)
            assert three.history
            versions = {state.weights and state.weights.version for state in three.history}
            assert versions == {"step-1"}

    run(test)
