"""How many actors a cluster gets, which of them may score together, and who is let in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from rm_core import Fingerprint, ModelConfig, ModelLoadError
from serve.jobs.executors.ray_actor import ActorSettings, ScorerActor, find_incompatibility
from serve.jobs.executors.ray_actor_pool import ResourceRequest, choose_resource_request

DEMO = ModelConfig("demo")
HEAD: Mapping[str, float] = {"memory": 1e9}
SMALL: Mapping[str, float] = {"CPU": 4.0, "memory": 1e9}
LARGE: Mapping[str, float] = {"CPU": 16.0}
GPUS: Mapping[str, float] = {"CPU": 8.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("model", "number", "nodes", "need", "room"),
    [
        # As many CPUs as the smallest node has, so that one fits on each.
        (DEMO, None, [HEAD, SMALL, LARGE], ResourceRequest("CPU", 4), 5),
        (DEMO, None, [SMALL, SMALL], ResourceRequest("CPU", 4), 2),
        # Fewer, if more actors are asked for.
        (DEMO, 4, [SMALL, SMALL], ResourceRequest("CPU", 2), 4),
        (DEMO, 9, [SMALL, SMALL], ResourceRequest("CPU", 1), 8),
        # Where there are GPUs, on these alone.
        (DEMO, None, [HEAD, SMALL, GPUS, GPUS], ResourceRequest("GPU", 1), 16),
        (replace(DEMO, num_devices=3), None, [GPUS], ResourceRequest("GPU", 3), 2),
        (replace(DEMO, device="cpu"), None, [GPUS], ResourceRequest("CPU", 8), 1),
        # No GPU yet: waited for, not replaced by CPUs.
        (replace(DEMO, device="cuda"), None, [SMALL], ResourceRequest("GPU", 1), 0),
        (DEMO, None, [HEAD], ResourceRequest("CPU", 1), 0),
        (DEMO, None, [], ResourceRequest("CPU", 1), 0),
    ],
)
def test_need_and_room(
    model: ModelConfig,
    number: int | None,
    nodes: list[Mapping[str, float]],
    need: ResourceRequest,
    room: int,
) -> None:
    assert choose_resource_request(model, number, nodes) == need
    assert need.count_slots(nodes) == room


def test_actors_of_one_job_score_alike() -> None:
    first = Fingerprint("abc", "def", "float32", "sdpa")
    assert find_incompatibility(first, first) is None
    assert find_incompatibility(first, replace(first, attention="eager")) is None
    for changed in ({"revision": "abd"}, {"template_sha256": "x"}, {"dtype": "bfloat16"}):
        field: dict[str, Any] = changed
        why = find_incompatibility(first, replace(first, **field))
        assert why
        assert next(iter(changed)) in why


def test_another_version_is_refused() -> None:
    actor = ScorerActor(ActorSettings(DEMO, "0.0.1", None))
    with pytest.raises(ModelLoadError, match=r"the job runs 0\.0\.1; install the same version"):
        actor.load()
