"""The application of a job on Ray Serve: the scorers of the service, without HTTP.

It has its own name next to whatever else Serve runs, and belongs to an actor of the job's
process. When that process ends, however it ends, Ray ends the actor, and the scorers then remove
their application.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import LoggingConfig

from rm_core import ModelConfig, ModelLoadError
from serve import __version__
from serve.app import build_scorer_deployment
from serve.config.model_settings import ModelSettings
from serve.deployments.replica import ScorerReplica
from serve.deployments.router import is_actor_alive

logger = logging.getLogger(__name__)

_NAMESPACE = "skyreward"
_MAX_REPLICAS = 10_000
_LOOK_EVERY_S = 3.0
# A replica that died may have been out of memory by chance; three in a row are not.
_MAX_START_ATTEMPTS = 3
# No request is in flight when a job ends.
_SHUTDOWN_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """The resource that one replica needs, such as 1 GPU or 8 CPUs."""

    kind: str
    amount: int

    def __str__(self) -> str:
        return f"{self.amount} {self.kind}{'s' if self.amount > 1 else ''}"

    def count_slots(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """Return how many replicas fit on nodes with these resources, ignoring other work there."""
        return sum(int(node.get(self.kind, 0) // self.amount) for node in nodes)


def choose_resource_request(
    model: ModelConfig, num_replicas: int | None, nodes: list[Mapping[str, float]]
) -> ResourceRequest:
    """Choose the resource of a replica for a whole job: rewards depend on the kind of device.

    Args:
        model: model configuration with `device` and `num_devices`.
        num_replicas: requested number of replicas; None for as many as fit.
        nodes: resources of each node.
    """
    has_gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
    if model.device.startswith("cuda") or (model.device == "auto" and has_gpus):
        return ResourceRequest("GPU", model.num_devices)
    sizes = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    for amount in range(min(sizes, default=1), 1, -1):
        if ResourceRequest("CPU", amount).count_slots(nodes) >= (num_replicas or 1):
            return ResourceRequest("CPU", amount)
    return ResourceRequest("CPU", 1)


def list_nodes() -> list[Mapping[str, float]]:
    """Return the resources of each node of the cluster that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class FillClusterPolicy:
    """Autoscaling policy for Serve: as many replicas as fit on the cluster, at least one."""

    def __init__(self, kind: str, amount: int) -> None:
        self._request = ResourceRequest(kind, amount)
        self._num_slots, self._next_look = 1, 0.0

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, and an empty state; called several times a second."""
        if time.monotonic() >= self._next_look:
            self._num_slots = max(1, self._request.count_slots(list_nodes()))
            self._next_look = time.monotonic() + _LOOK_EVERY_S
        return self._num_slots, {}


@dataclass(frozen=True, slots=True)
class JobContext:
    """What a replica has to know of its job.

    Attributes:
        owner: name of the actor that lives as long as the job's process.
        version: version of this package in the job's process.
        model: effective settings on which all replicas have to agree, by name.
    """

    owner: str
    version: str
    model: Mapping[str, str]


class JobScorerReplica(ScorerReplica):
    """A scorer that removes its application once the job's process is gone.

    Raises:
        ModelLoadError: this node has another version of this package or another checkpoint than
            the job's process, or the checkpoint is refused.
    """

    def __init__(self, settings: dict[str, Any], context: JobContext) -> None:
        self._context = context
        if context.version != __version__:
            raise ModelLoadError(
                f"this node has skyreward {__version__}, the job runs {context.version}; install "
                "the same version on every node"
            )
        self._remove_if_orphaned()
        super().__init__(settings, "WARNING", "text")
        info = self._worker.info
        for name, expected in context.model.items():
            if (found := getattr(info, name)) != expected:
                raise ModelLoadError(
                    f"the {name} is {found} on this node and {expected} where the job runs; use "
                    "the same checkpoint on every node"
                )

    async def check_health(self) -> None:  # type: ignore[override]
        """See `ScorerReplica`; called by Serve every few seconds, also while nothing is scored."""
        await asyncio.to_thread(self._remove_if_orphaned)
        super().check_health()

    def _remove_if_orphaned(self) -> None:
        if not is_actor_alive(self._context.owner, _NAMESPACE):
            logger.warning("the process of the job is gone: removing its application")
            remove_application(ray_serve.get_replica_context().app_name)


def deploy(
    name: str,
    model: ModelConfig,
    request: ResourceRequest,
    num_replicas: int | None,
    shared_settings: Mapping[str, str],
    replica_class: type[JobScorerReplica] = JobScorerReplica,
) -> tuple[Any, Any]:
    """Deploy the scorers of a job, and do not wait for them.

    Args:
        name: name of the application.
        model: configuration of the model.
        request: resource of each replica.
        num_replicas: number of replicas; None for as many as fit, also when nodes join or leave.
        shared_settings: see `JobContext.model`.
        replica_class: class of the replicas.

    Returns:
        Handle of the deployment, and the actor that the application belongs to.
    """
    on_gpu = request.kind == "GPU"
    shared = {field.name for field in fields(model)} & ModelSettings.model_fields.keys()
    settings = ModelSettings(
        **{name: getattr(model, name) for name in shared - {"device"}},
        alias=model.catalog_name or model.name,
        num_gpus=request.amount if on_gpu else 0,
        cpu_threads=None if on_gpu else request.amount,
    )
    # A replica on a GPU requests no CPU, so that it fits wherever a GPU is free.
    resources = {
        "num_gpus": request.amount if on_gpu else 0,
        "num_cpus": 0 if on_gpu else request.amount,
    }
    if num_replicas is None:
        policy = AutoscalingPolicy(
            policy_function=FillClusterPolicy,
            policy_kwargs={"kind": request.kind, "amount": request.amount},
        )
        scale: dict[str, Any] = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=1,
                initial_replicas=max(1, request.count_slots(list_nodes())),
                max_replicas=_MAX_REPLICAS,
                upscale_delay_s=0,
                downscale_delay_s=_LOOK_EVERY_S,
                policy=policy,
            )
        }
    else:
        scale = {"num_replicas": num_replicas}
    deployment = build_scorer_deployment(settings.alias, replica_class).options(
        max_constructor_retry_count=_MAX_START_ATTEMPTS,
        ray_actor_options=resources,
        graceful_shutdown_timeout_s=_SHUTDOWN_TIMEOUT_S,
        **scale,
    )
    application = deployment.bind(
        settings.model_dump(mode="json"), JobContext(name, __version__, dict(shared_settings))
    )
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # its lines garble a progress bar
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    # Only if Serve does not run yet: a proxy would take a port.
    ray_serve.start(proxy_location="Disabled", logging_config=quiet)
    target = ray_serve.RunTarget(application, name, None, quiet)
    owner = _create_owner(name)
    (handle,) = ray_serve.run_many(
        [target], wait_for_ingress_deployment_creation=True, wait_for_applications_running=False
    )
    return handle, owner


def _create_owner(name: str) -> Any:
    """Create the actor, without work, that lives as long as this process."""

    # A class in a function is sent by value: its process does not import torch.
    class JobOwner:
        pass

    options = {"name": name, "namespace": _NAMESPACE, "num_cpus": 0, "max_restarts": -1}
    return ray.remote(JobOwner).options(**options).remote()


def remove_application(name: str) -> None:
    """Remove the application of a job, and stop Serve if only jobs used it."""
    status = ray_serve.status()
    # Serve without a proxy was started by a job, and nothing else could listen on it.
    if not status.proxies and not set(status.applications) - {name}:
        ray_serve.shutdown()
    else:
        with contextlib.suppress(RuntimeError):  # it is gone already
            ray_serve.delete(name, _blocking=False)
