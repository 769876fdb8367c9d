"""Starts the service and keeps it in the foreground: `skyreward serve`, with Ray or without.

Refuses a bad checkpoint before Ray starts where that can be seen from its files, shows progress,
tells where to post once every model is ready, and finishes what was accepted on SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing
from types import FrameType
from typing import Any

import httpx

from rm_core import ModelLoadError, load_encoder, open_checkpoint
from serve.settings import ModelSettings, Settings

Say = Callable[[str], None]

_POLL_S = 0.3
# Read by Ray when it is imported. Usage statistics and a token file are not wanted from a service
# started by hand; a batch of more than 4 MiB would fail under Ray's default message length.
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 2**20),
}
_OBJECT_STORE_BYTES = 100 * 2**20  # batches go by value; Ray's default is 30% of all memory


def run_with_ray(settings: Settings, say: Say) -> None:
    """Serve on Ray until a signal comes.

    Raises:
        ModelLoadError: a model was refused, or the address cannot be listened on.
    """
    preflight(settings, say)
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    say("starting Ray")
    import ray
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    from serve.app import APP_NAME, build

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    own_cluster = "RAY_ADDRESS" not in os.environ
    ray.init(
        logging_level="ERROR",
        **(
            {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
            if own_cluster
            else {}
        ),
    )
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
        if not own_cluster:
            ray_serve.shutdown()
    finally:
        stop.restore()
        if own_cluster:
            ray.shutdown()


def run_locally(settings: Settings, say: Say) -> None:
    """Serve from this one process, without Ray, until a signal comes.

    Raises:
        ModelLoadError: a model was refused, or the address cannot be listened on.
    """
    import uvicorn

    from serve.backends import LocalBackend, load_scorer
    from serve.http import create_app
    from serve.service import ScoringService
    from serve.telemetry import configure_logging

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                say(ready_line(settings))

    preflight(settings, say)
    configure_logging(settings.log_level)
    models = []
    for model in settings.models:
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
        ModelLoadError: a checkpoint's files are wrong, or the port is taken.
    """
    for model in settings.models:
        say(f"checking {model.alias}")
        config = model.model_loading()
        # A hub checkpoint's weights are fetched where they are needed: by the replicas.
        load_encoder(config, open_checkpoint(config, weights=not _on_hub(model)))
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise ModelLoadError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; stop what "
                "runs there, or choose another --port"
            ) from error


def _on_hub(model: ModelSettings) -> bool:
    return model.name != "demo" and not os.path.isdir(model.name)


def address(settings: Settings) -> str:
    """Where a client on this machine reaches the service."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://{host}:{settings.port}"


def ready_line(settings: Settings) -> str:
    """The one line that says where to post."""
    models = ", ".join(model.alias for model in settings.models)
    return f"ready: POST {address(settings)}/v1/score  (models: {models}; docs: /docs)"


class _Stop:
    """Becomes true on SIGTERM or SIGINT; made after `ray.init`, which sets handlers of its own."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise SystemExit(128 + number)
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
        if found := re.search(r"\bModelLoadError: (.+)", message):
            return found[1]
    return "; ".join(message for message in messages if message)
