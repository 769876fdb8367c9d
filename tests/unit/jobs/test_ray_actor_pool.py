"""Size of the actor pool, and which actors may score one job."""

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
    ("model", "num_actors", "nodes", "request_", "num_slots"),
    [
        # As many CPUs as the smallest node has, so that one fits on each.
        (DEMO, None, [HEAD, SMALL, LARGE], ResourceRequest("CPU", 4), 5),
        (DEMO, None, [SMALL, SMALL], ResourceRequest("CPU", 4), 2),
        # Fewer CPUs if more actors are requested.
        (DEMO, 4, [SMALL, SMALL], ResourceRequest("CPU", 2), 4),
        (DEMO, 9, [SMALL, SMALL], ResourceRequest("CPU", 1), 8),
        # If there are GPUs, only on GPUs.
        (DEMO, None, [HEAD, SMALL, GPUS, GPUS], ResourceRequest("GPU", 1), 16),
        (replace(DEMO, num_devices=3), None, [GPUS], ResourceRequest("GPU", 3), 2),
        (replace(DEMO, device="cpu"), None, [GPUS], ResourceRequest("CPU", 8), 1),
        # No GPU yet: wait for one, do not fall back to CPUs.
        (replace(DEMO, device="cuda"), None, [SMALL], ResourceRequest("GPU", 1), 0),
        (DEMO, None, [HEAD], ResourceRequest("CPU", 1), 0),
        (DEMO, None, [], ResourceRequest("CPU", 1), 0),
    ],
)
def test_choose_resource_request_and_count_slots(
    model: ModelConfig,
    num_actors: int | None,
    nodes: list[Mapping[str, float]],
    request_: ResourceRequest,
    num_slots: int,
) -> None:
    assert choose_resource_request(model, num_actors, nodes) == request_
    assert request_.count_slots(nodes) == num_slots


def test_find_incompatibility_ignores_attention_only() -> None:
    first = Fingerprint("abc", "def", "float32", "sdpa")
    assert find_incompatibility(first, first) is None
    assert find_incompatibility(first, replace(first, attention="eager")) is None
    for changed in ({"revision": "abd"}, {"template_sha256": "x"}, {"dtype": "bfloat16"}):
        field: dict[str, Any] = changed
        reason = find_incompatibility(first, replace(first, **field))
        assert reason
        assert next(iter(changed)) in reason


def test_actor_refuses_other_package_version() -> None:
    actor = ScorerActor(ActorSettings(DEMO, "0.0.1", None))
    with pytest.raises(ModelLoadError, match=r"the job runs 0\.0\.1; install the same version"):
        actor.load()
