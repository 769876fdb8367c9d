"""Joins the parts: settings in, a Ray Serve application out. Start reading here.

    serve run serve.app:build                          the demo model
    serve run serve.app:build models=ORG/NAME          another one
    serve run config.yaml                              with import_path: serve.app:build
    skyreward serve                                    the same application, with its own signals

A request goes gateway (`serve.gateway`: validate, tokenize, look up what is known, split) -> scorer
(`serve.scorer`: batches from all requests, one at a time through the model) -> gateway (put back in
order, answer).
"""

# No postponed annotations here: Serve reads the type of `build`'s argument at run time.

import re
from typing import Any

import ray
import torch
from ray import serve as ray_serve
from ray.serve import Application

from serve.backends import pin_revision
from serve.gateway import Gateway
from serve.keys import KeyRing
from serve.model_settings import ModelSettings
from serve.scorer import Scorer
from serve.settings import Settings

APP_NAME = "skyreward"

# Gateways hold connections cheaply; the limit only has to be out of the way.
_GATEWAY_MAX_ONGOING = 1024
# A replica makes its batches from the calls that wait at it, so many small ones must be let in;
# what is over this waits in the gateway, for whichever replica is free first.
_SCORER_MAX_ONGOING = 256


def build(args: Settings) -> Application:
    """The application for one set of settings.

    Args:
        args: `Settings`; Serve makes it from the arguments of `serve run` or the YAML's `args`.

    Raises:
        ModelLoadError: a hub checkpoint cannot be found, or the API keys cannot be read.
    """
    keys = KeyRing.of(args)
    # Else a push to the hub could give the gateway and each replica another revision.
    args = args.model_copy(update={"models": tuple(map(pin_revision, args.models))})
    scorers = {model.alias: _scorer(model, args.log_level) for model in args.models}
    gateway = ray_serve.deployment(Gateway).options(
        name="Gateway",
        max_ongoing_requests=_GATEWAY_MAX_ONGOING,
        ray_actor_options={"num_cpus": 0},
    )
    # No key leaves this process: the gateway gets digests. An empty list rather than none, or it
    # would look for keys in its own environment.
    settings = args.model_dump(mode="json") | {"api_keys": []}
    application: Application = gateway.bind(settings, scorers, keys.digests)
    return application


def deployment_name(alias: str) -> str:
    """Name of the deployment that serves a model, unique where aliases are."""
    return "Scorer-" + re.sub(r"[^\w.-]", lambda match: f"_{ord(match[0]):x}_", alias)


def _scorer(model: ModelSettings, log_level: str) -> Any:
    deployment = ray_serve.deployment(Scorer).options(
        name=deployment_name(model.alias),
        num_replicas=model.num_replicas,
        max_ongoing_requests=_SCORER_MAX_ONGOING,
        # A refused checkpoint is refused again: trying twenty times only hides the reason.
        max_constructor_retry_count=1,
        ray_actor_options={"num_cpus": 0, "num_gpus": _num_gpus(model)},
    )
    return deployment.bind(model.model_dump(mode="json"), log_level)


def _num_gpus(model: ModelSettings) -> float:
    if model.num_gpus is not None:
        return model.num_gpus
    if model.device == "cpu":
        return 0
    if not ray.is_initialized():  # `serve run` builds the application before it starts Ray
        return 1 if torch.cuda.is_available() else 0
    return 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
