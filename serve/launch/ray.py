"""Starts the service and keeps it in the foreground: `skyreward serve`, with Ray or without.

Refuses a bad checkpoint before Ray starts where that can be seen from its files, shows progress,
tells where to post once every model is ready, and finishes what was accepted on SIGTERM or Ctrl-C.
What listens is chosen by `serve.launch.ingress`; the way without Ray is `serve.launch.local`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from rm_core import ModelLoadError, load_encoder, open_checkpoint
from serve.api.middleware.api_keys import KeyRing, warnings_of
from serve.config.settings import Settings
from serve.deployments.cluster import (
    guard_with_a_token,
    own_cluster,
    private_folder,
    settings_left_out,
)
from serve.launch import ingress
from serve.launch.address import check_address, own_client, ready_line

Say = Callable[[str], None]

_POLL_S = 0.3
# For what gateways have answered to leave what listens.
_LAST_BYTES_S = 0.5


def run_with_ray(settings: Settings, say: Say) -> None:
    """Serve on Ray until a signal comes: on a cluster named by RAY_ADDRESS, else on one of our own.

    Does not return: the process ends.

    Raises:
        ModelLoadError: a model was refused, or the address cannot be listened on.
    """
    joins = bool(os.environ.get("RAY_ADDRESS"))
    chosen = ingress.choose(settings, not joins)
    if not joins:
        guard_with_a_token(settings.insecure_ray)
    preflight(settings, say)
    with private_folder() as made:
        for name, value in ingress.RAY_DEFAULTS.items():
            os.environ.setdefault(name, value)
        if settings.log_format == "json":
            # A line that starts with the name of its process is no JSON.
            os.environ.setdefault("RAY_DISABLE_WORKER_LOG_PREFIX", "1")
        if joins:
            say(f"connecting to Ray at {os.environ['RAY_ADDRESS']}")
        else:
            os.environ.update(ingress.environment(chosen, settings, Path(made)))
            say("starting Ray")
        exit_code = _serve(settings, chosen, None if joins else Path(made), say)
    # Nothing is left to do, and tearing down torch and Ray takes seconds.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _serve(settings: Settings, chosen: ingress.Ingress, folder: Path | None, say: Say) -> int:
    """Serve until a signal comes.

    Args:
        settings: of the service.
        chosen: what listens.
        folder: private, for a Ray of our own; None to join the cluster that RAY_ADDRESS names.
        say: for progress.

    Returns:
        The exit code.
    """
    import ray
    from ray import serve as ray_serve
    from ray.serve.schema import LoggingConfig

    from serve.app import APP_NAME, build

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with settings_left_out():
        ray.init(logging_level="ERROR", **(own_cluster(folder) if folder else {}))
    stop = _Stop()
    try:
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        try:
            ray_serve.start(http_options=_http_options(settings, chosen), logging_config=quiet)
        except (
            RuntimeError
        ) as error:  # the port was taken after it was looked at, or HAProxy failed
            raise ModelLoadError(
                f"Ray Serve cannot listen on {settings.host}:{settings.port}: "
                f"{str(error).strip().splitlines()[-1]}"
            ) from error
        target = ray_serve.RunTarget(build(settings), APP_NAME, "/", quiet)
        ray_serve.run_many([target], wait_for_applications_running=False)
        may_have_accepted = _await_ready(settings, stop, say, _failure_on_ray)
        stop.wait()
        say("stopping: finishing what was accepted (once more to stop at once)")
        if may_have_accepted:
            # Before anything is deleted: Serve would stop gateways and scorers at the same moment.
            # One that dies meanwhile has nothing left to finish.
            gateways = ray_serve.get_app_handle(APP_NAME).broadcast("drain")
            gateways.results(return_exceptions=True)
            time.sleep(_LAST_BYTES_S)
        if not folder:  # on our own all ends at once; 404 would be answered for a while
            ray_serve.delete(APP_NAME)
    except SystemExit:  # the second signal; Ray makes one of its own of it, with another code
        pass
    finally:
        if not folder:
            # Others use it: away with what is ours, this application, and with nothing else.
            with contextlib.suppress(RuntimeError):  # there is none if Serve did not start
                ray_serve.delete(APP_NAME, _blocking=False)
        ray.shutdown()
        stop.restore()
    return stop.exit_code


def _http_options(settings: Settings, chosen: ingress.Ingress) -> Any:
    from ray.serve.config import HTTPOptions

    if chosen == "haproxy":
        # HAProxy itself listens where the settings say; see `serve.launch.haproxy`.
        return HTTPOptions(host=ingress.INSIDE_HOST, port=settings.port)
    return HTTPOptions(
        host=settings.host,
        port=settings.port,
        ssl_keyfile=settings.tls_key_file,
        ssl_certfile=settings.tls_cert_file,
    )


def run_locally(settings: Settings, say: Say) -> None:
    """Serve from this one process, without Ray, until a signal comes.

    Raises:
        ModelLoadError: a model was refused, or the address cannot be listened on.
    """
    from serve.launch import local

    preflight(settings, say)
    local.run(settings, say)


def preflight(settings: Settings, say: Say) -> None:
    """Refuse what can be refused before anything is started.

    Raises:
        ModelLoadError: a checkpoint's files or the API keys are wrong, or the port is taken.
    """
    for warning in warnings_of(settings, KeyRing.of(settings)):
        say(warning)
    for model in settings.models:
        say(f"checking {model.alias}")
        config = model.model_loading()
        # A hub checkpoint's weights are fetched where they are needed: by the replicas.
        load_encoder(config, open_checkpoint(config, weights=not model.on_hub))
    check_address(settings)


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
    with own_client(settings) as client:
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
        # It may have come up since it was asked last.
        return gateway_is_up or "models" in _readiness(client)


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
