"""Starts the service and keeps it in the foreground: `skyreward serve`, with Ray or without.

Refuses a bad checkpoint before Ray starts where that can be seen from its files, shows progress,
tells where to post once every model is ready, and finishes what was accepted on SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing
from types import FrameType
from typing import Any

import httpx

from rm_core import ModelLoadError, load_encoder, open_checkpoint
from serve.keys import KeyRing
from serve.settings import Settings

Say = Callable[[str], None]

_POLL_S = 0.3
# Read by Ray when it is imported. A batch of more than 4 MiB would fail under Ray's own limit.
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 2**20),
    # Ray's workers are nice (15) to what else runs on a machine: a service must not be.
    "RAY_worker_niceness": "0",
}
# `local`, or `ray.init` would join whatever cluster runs on this machine; a small store, since
# batches go by value.
_OWN_CLUSTER: dict[str, Any] = {
    "address": "local",
    "include_dashboard": False,
    "object_store_memory": 100 * 2**20,
}


def run_with_ray(settings: Settings, say: Say) -> None:
    """Serve on Ray until a signal comes: on a cluster named by RAY_ADDRESS, else on one of our own.

    Raises:
        ModelLoadError: a model was refused, or the address cannot be listened on.
    """
    preflight(settings, say)
    own_cluster = not os.environ.get("RAY_ADDRESS")
    _prepare_environment(own_cluster)
    say("starting Ray" if own_cluster else f"connecting to Ray at {os.environ['RAY_ADDRESS']}")
    import ray
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    from serve.app import APP_NAME, build

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(logging_level="ERROR", **(_OWN_CLUSTER if own_cluster else {}))
    stop = _Stop()
    try:
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        ray_serve.start(
            http_options=HTTPOptions(host=settings.host, port=settings.port), logging_config=quiet
        )
        target = ray_serve.RunTarget(build(settings), APP_NAME, "/", quiet)
        ray_serve.run_many([target], wait_for_applications_running=False)
        may_have_accepted = _await_ready(settings, stop, say, _failure_on_ray)
        stop.wait()
        say("stopping: finishing what was accepted (once more to stop at once)")
        if may_have_accepted:
            # Before anything is deleted: Serve would stop gateway and scorers at the same moment.
            ray_serve.get_app_handle(APP_NAME).drain.remote().result()
        ray_serve.delete(APP_NAME)
    except SystemExit:  # the second signal; Ray makes one of its own of it, with another code
        raise SystemExit(stop.exit_code) from None
    finally:
        if not own_cluster:
            # Others use it: away with what is ours, this application, and with nothing else.
            with contextlib.suppress(RuntimeError):  # there is none if Serve did not start
                ray_serve.delete(APP_NAME, _blocking=False)
        ray.shutdown()
        stop.restore()


def _prepare_environment(own_cluster: bool) -> None:
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if own_cluster and "RAY_AUTH_MODE" not in os.environ:
        # Ray's own ports listen on every interface. A token that only this service's processes know
        # guards them; by itself Ray would keep one in a file in the home folder.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def run_locally(settings: Settings, say: Say) -> None:
    """Serve from this one process, without Ray, until a signal comes.

    Raises:
        ModelLoadError: a model was refused, or the address cannot be listened on.
    """
    import torch
    import uvicorn

    from serve.backends import LocalBackend, load_scorer, pin_revision
    from serve.http import create_app
    from serve.service import ScoringService
    from serve.telemetry import configure_logging

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                say(ready_line(settings))

    preflight(settings, say)
    if copies := [model.alias for model in settings.models if model.num_replicas > 1]:
        raise ModelLoadError(
            f"{copies[0]} is to have several replicas, and --local is a single process; leave "
            "num_replicas (--replicas) or --local out"
        )
    configure_logging(settings.log_level)
    if threads := [model.cpu_threads for model in settings.models if model.cpu_threads]:
        torch.set_num_threads(max(threads))
    models = []
    for model in map(pin_revision, settings.models):
        say(f"loading {model.alias} and warming it up")
        models.append((model, LocalBackend(load_scorer(model))))
    app = create_app(ScoringService(models), settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops in order, then raises the signal again; that would spoil the exit code.
        signal.signal(number, lambda _number, _frame: None)
    Server(uvicorn.Config(app, host=settings.host, port=settings.port, log_level="warning")).run()


def preflight(settings: Settings, say: Say) -> None:
    """Refuse what can be refused before anything is started.

    Raises:
        ModelLoadError: a checkpoint's files or the API keys are wrong, or the port is taken.
    """
    KeyRing.of(settings)
    for model in settings.models:
        say(f"checking {model.alias}")
        config = model.model_loading()
        # A hub checkpoint's weights are fetched where they are needed: by the replicas.
        load_encoder(config, open_checkpoint(config, weights=not model.on_hub))
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        with closing(socket.socket(family, kind)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise ModelLoadError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; stop what "
            "runs there, or choose another --port or --host"
        ) from error


def address(settings: Settings) -> str:
    """Where a client on this machine reaches the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def ready_line(settings: Settings) -> str:
    """The one line that says where to post."""
    models = ", ".join(model.alias for model in settings.models)
    return f"ready: POST {address(settings)}/v1/score  (models: {models}; docs: /docs)"


class _Stop:
    """Becomes true on SIGTERM or SIGINT; made after `ray.init`, which sets handlers of its own."""

    def __init__(self) -> None:
        self.asked = False
        self.exit_code = 0
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            self.exit_code = 128 + number
            raise SystemExit(self.exit_code)
        self.asked = True

    def wait(self) -> None:
        while not self.asked:
            time.sleep(_POLL_S)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _await_ready(
    settings: Settings, stop: _Stop, say: Say, failure: Callable[[], str | None]
) -> bool:
    """Return once all is ready, or a signal came; False if not even the gateway was up by then."""
    said, gateway_is_up = "", False
    with httpx.Client(base_url=address(settings), timeout=5, trust_env=False) as client:
        while not stop.asked:
            if why := failure():
                raise ModelLoadError(why)
            state = _readiness(client)
            if state.get("ready"):
                say(ready_line(settings))
                return True
            gateway_is_up = gateway_is_up or "models" in state
            waiting = [a for a, m in state.get("models", {}).items() if m["state"] != "ready"]
            now = f"loading {', '.join(waiting)}" if waiting else "starting the gateway"
            if now != said:
                say(now)
                said = now
            time.sleep(_POLL_S)
    return gateway_is_up


def _readiness(client: httpx.Client) -> dict[str, Any]:
    try:
        body = client.get("/ready").json()
    except (httpx.HTTPError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _failure_on_ray() -> str | None:
    """Why the application will not start; None while it still may."""
    from ray import serve as ray_serve
    from ray.serve.schema import ApplicationStatus

    from serve.app import APP_NAME

    application = ray_serve.status().applications.get(APP_NAME)
    if application is None or application.status != ApplicationStatus.DEPLOY_FAILED:
        return None
    messages = [application.message, *(d.message for d in application.deployments.values())]
    for message in messages:
        # The last one: Ray's text names it after the errors that led to it.
        if found := re.findall(r"\brm_core\.errors\.\w+: (.+)", message):
            return str(found[-1])
    return "; ".join(message for message in messages if message)
