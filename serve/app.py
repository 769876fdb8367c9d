"""Builds the Ray Serve application from settings.

    serve run serve.app:build                          the demo model
    serve run serve.app:build models=ORG/NAME          another model
    serve run config.yaml                              with import_path: serve.app:build
    skyreward serve                                    the same application, started by the CLI

The application has gateways (`serve.deployments.gateway`), which validate, tokenize and queue
requests, scorer replicas for each model (`serve.deployments.replica`), which run one batch at a
time, and one process that gives commands to the replicas (`serve.deployments.control`).
"""

# No postponed annotations here: Serve reads the type of `build`'s argument at run time.

from typing import Any

import ray
import torch
from ray import serve as ray_serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from serve.api.middleware.access import AdminWithoutKey, KeyRing
from serve.config.model_settings import ModelSettings
from serve.config.settings import Settings
from serve.deployments.autoscaling import QueuedTokensPolicy
from serve.deployments.control import ModelControl
from serve.deployments.gateway import Gateway, GatewayKeys, get_deployment_name
from serve.deployments.replica import ScorerReplica
from serve.deployments.router import LeastLoadedRouter
from serve.worker.backends import pin_settings

APP_NAME = "skyreward"

# Gateways hold connections cheaply and apply their own limits (`max_requests`) with better error
# responses, so Serve's limit only has to be high enough.
_GATEWAY_MAX_ONGOING = 16_384
# The control deployment keeps a call of every replica open.
_CONTROL_MAX_ONGOING = 16_384
_CONTROL_SHUTDOWN_S = 1  # of these calls, none is waited for
# Gateways count the batches of each replica, so this limit only has to be high enough too.
_SCORER_MAX_ONGOING = 256
# Ray places actors without resources at random. A nominal CPU request makes Ray spread them across
# nodes, so that the loss of one node does not take all gateways.
_NUM_CPUS = 0.01
# Serve replaces a replica after three failures.
_HEALTH_CHECK_PERIOD_S = 5
# A request in progress may take until its deadline, and its response some time to be sent.
_AFTER_DEADLINE_S = 10
# Scale up soon, since a queue has already formed, and down late, since models load slowly.
_UPSCALE_DELAY_S = 10
_DOWNSCALE_DELAY_S = 300
_LOOK_BACK_S = 15


def build(args: Settings) -> Application:
    """Build the application; Serve parses the settings of `serve run` or a YAML config."""
    # Serve's options say where it listens, and they may let other machines in.
    return build_application(args, admin_without_key="none")


def build_application(
    args: Settings, *, admin_without_key: AdminWithoutKey, admin_key: str = ""
) -> Application:
    """Build the application; see `build`.

    Without a key for it, `admin_without_key` says who may control models; `admin_key` is such a
    key.
    """
    keys, listed_keys = KeyRing.from_settings(args), KeyRing.from_settings(args, with_file=False)
    admin_keys = KeyRing.from_settings(args, admin=True)
    listed_admin_keys = KeyRing.from_settings(args, admin=True, with_file=False).digests
    if admin_key:
        listed_admin_keys += KeyRing([(admin_key, "the launcher")]).digests
    # Otherwise a push to the hub could give the gateway and each replica different revisions.
    args = args.model_copy(update={"models": tuple(map(pin_settings, args.models))})
    models = [_resolve_device(model) for model in args.models]
    control = (
        ray_serve.deployment(ModelControl)
        .options(
            name="Control",
            num_replicas=1,
            max_ongoing_requests=_CONTROL_MAX_ONGOING,
            ray_actor_options={"num_cpus": _NUM_CPUS},
            graceful_shutdown_timeout_s=_CONTROL_SHUTDOWN_S,
        )
        .bind({model.alias: model.weights_key for model in models})
    )
    scorers = {model.alias: _bind_scorer(model, args, control) for model in models}
    gateway = ray_serve.deployment(Gateway).options(
        name="Gateway",
        num_replicas=args.num_gateways,
        max_ongoing_requests=_GATEWAY_MAX_ONGOING,
        ray_actor_options={"num_cpus": _NUM_CPUS},
        **_build_shutdown_options(args),
    )
    # Ray gets no API keys: gateways get their digests.
    without_keys = args.model_copy(update={"api_keys": (), "admin_api_keys": ()})
    gateway_keys = GatewayKeys(
        keys=keys.digests,
        listed_keys=listed_keys.digests,
        admin_keys=(*admin_keys.digests, *listed_admin_keys),
        listed_admin_keys=listed_admin_keys,
        admin_without_key="none" if admin_keys else admin_without_key,
    )
    application: Application = gateway.bind(without_keys, scorers, gateway_keys, control)
    return application


def _resolve_device(model: ModelSettings) -> ModelSettings:
    if _resolve_num_gpus(model) == 0 and model.device == "auto":
        # Ray leaves the GPUs of a machine visible to an actor that has none assigned.
        return model.model_copy(update={"device": "cpu"})
    return model


def _bind_scorer(model: ModelSettings, settings: Settings, control: Any) -> Any:
    deployment = build_scorer_deployment(model.alias).options(
        ray_actor_options={"num_cpus": _NUM_CPUS, "num_gpus": _resolve_num_gpus(model)},
        **_build_replica_options(model),
        **_build_shutdown_options(settings),
    )
    return deployment.bind(
        model.model_dump(mode="json"), settings.log_level, settings.log_format, control
    )


def build_scorer_deployment(
    alias: str, replica_class: type[ScorerReplica] = ScorerReplica
) -> Deployment:
    """Build the deployment of a model's scorers, without its arguments, size and resources."""
    deployment: Deployment = ray_serve.deployment(replica_class).options(
        name=get_deployment_name(alias),
        max_ongoing_requests=_SCORER_MAX_ONGOING,
        # A refused checkpoint is refused again: twenty retries would only hide the reason.
        max_constructor_retry_count=1,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        request_router_config=RequestRouterConfig(request_router_class=LeastLoadedRouter),
    )
    return deployment


def _build_replica_options(model: ModelSettings) -> dict[str, Any]:
    if model.max_replicas is None or model.max_replicas == model.num_replicas:
        return {"num_replicas": model.num_replicas}
    policy = AutoscalingPolicy(
        policy_function=QueuedTokensPolicy,
        policy_kwargs={"target_queued_tokens": model.target_queued_tokens},
    )
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=model.num_replicas,
            max_replicas=model.max_replicas,
            upscale_delay_s=_UPSCALE_DELAY_S,
            downscale_delay_s=_DOWNSCALE_DELAY_S,
            look_back_period_s=_LOOK_BACK_S,
            policy=policy,
        )
    }


def _build_shutdown_options(settings: Settings) -> dict[str, Any]:
    """Return how long a stopping replica may finish its requests, and how often Serve checks."""
    return {
        "graceful_shutdown_timeout_s": settings.max_request_timeout_s + _AFTER_DEADLINE_S,
        "graceful_shutdown_wait_loop_s": 0.5,
    }


def _resolve_num_gpus(model: ModelSettings) -> float:
    if model.num_gpus is not None:
        return model.num_gpus
    if model.device == "cpu":
        return 0
    if not ray.is_initialized():  # `serve run` builds the application before it starts Ray
        return 1 if torch.cuda.is_available() else 0
    return 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
