"""The application of a job on Ray: its size, its replicas' checks, and its removal."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

import pytest

from rm_core import ModelConfig, ModelLoadError
from serve import __version__
from serve.config.model_settings import ModelSettings
from serve.errors import ReplicaLostError

with warnings.catch_warnings(action="ignore"):  # of Ray Serve's import
    from serve.jobs.executors import ray_application
    from serve.jobs.executors.ray_application import (
        FillClusterPolicy,
        JobContext,
        JobScorerReplica,
        ResourceRequest,
        choose_resource_request,
        remove_application,
    )

DEMO = ModelConfig("demo")
HEAD: Mapping[str, float] = {"memory": 1e9}
SMALL: Mapping[str, float] = {"CPU": 4.0, "memory": 1e9}
LARGE: Mapping[str, float] = {"CPU": 16.0}
GPUS: Mapping[str, float] = {"CPU": 8.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("model", "num_replicas", "nodes", "request_", "num_slots"),
    [
        # As many CPUs as the smallest node has, so that one fits on each.
        (DEMO, None, [HEAD, SMALL, LARGE], ResourceRequest("CPU", 4), 5),
        (DEMO, None, [SMALL, SMALL], ResourceRequest("CPU", 4), 2),
        # Fewer CPUs if more replicas are requested.
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
    num_replicas: int | None,
    nodes: list[Mapping[str, float]],
    request_: ResourceRequest,
    num_slots: int,
) -> None:
    assert choose_resource_request(model, num_replicas, nodes) == request_
    assert request_.count_slots(nodes) == num_slots


def test_policy_follows_size_of_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[Mapping[str, float]] = []
    monkeypatch.setattr(ray_application, "list_nodes", lambda: nodes)
    monkeypatch.setattr(ray_application, "_LOOK_EVERY_S", 0.0)
    policy = FillClusterPolicy("CPU", 4)
    for num_replicas, new_nodes in ((1, []), (1, [SMALL]), (5, [SMALL, LARGE]), (4, [LARGE])):
        nodes[:] = new_nodes
        assert policy(None) == (num_replicas, {})


def test_replica_refuses_other_package_version() -> None:
    context = JobContext("job", "0.0.1", {})
    with pytest.raises(ModelLoadError, match=r"the job runs 0\.0\.1; install the same version"):
        JobScorerReplica({}, context)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replicas whose job is alive until `is_alive` is False; `removed` has applications."""
    job = SimpleNamespace(is_alive=True, removed=[])
    monkeypatch.setattr(ray_application, "is_actor_alive", lambda *_: job.is_alive)
    monkeypatch.setattr(ray_application, "remove_application", job.removed.append)
    replica_id = SimpleNamespace(unique_id="replica-1")
    context = SimpleNamespace(app_name="skyreward-job-1", replica_id=replica_id)
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: context)
    return job


def test_replica_refuses_other_checkpoint(job: SimpleNamespace) -> None:
    settings = ModelSettings(name="demo").model_dump(mode="json")
    with pytest.raises(ModelLoadError, match=r"revision is local-\w+ on this node and other where"):
        JobScorerReplica(settings, JobContext("job", __version__, {"revision": "other"}))


def test_replica_removes_application_once_job_is_gone(job: SimpleNamespace) -> None:
    settings = ModelSettings(name="demo").model_dump(mode="json")
    replica = JobScorerReplica(settings, JobContext("job", __version__, {}))
    asyncio.run(replica.check_health())
    assert job.removed == []
    job.is_alive = False
    asyncio.run(replica.check_health())
    assert job.removed == ["skyreward-job-1"]
    # The check of the scorer itself is still made.
    job.is_alive = True
    replica._worker.close()
    replica._worker._device_thread.shutdown(wait=True)
    with pytest.raises(ReplicaLostError, match="its thread ended"):
        asyncio.run(replica.check_health())


@pytest.mark.parametrize(
    ("proxies", "others", "stops_serve"),
    [({}, [], True), ({}, ["other"], False), ({"node": "HEALTHY"}, [], False)],
)
def test_serve_is_stopped_only_if_jobs_alone_used_it(
    proxies: dict[str, str],
    others: list[str],
    stops_serve: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    status = SimpleNamespace(proxies=proxies, applications=dict.fromkeys(["job", *others]))
    fake = SimpleNamespace(
        status=lambda: status,
        shutdown=lambda: calls.append("shutdown"),
        delete=lambda name, **_: calls.append(f"delete {name}"),
    )
    monkeypatch.setattr(ray_application, "ray_serve", fake)
    remove_application("job")
    assert calls == (["shutdown"] if stops_serve else ["delete job"])
