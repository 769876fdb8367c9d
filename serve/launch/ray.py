"""Starts the service and keeps it in the foreground: `skyreward serve`, with Ray or without.

Refuses a bad checkpoint before Ray starts if its files show the problem, reports progress, prints
the address once every model is ready, and finishes accepted requests on SIGTERM or Ctrl-C.
`serve.launch.ingress` chooses the process that listens; `serve.launch.local` serves without Ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import httpx

from rm_core import ModelLoadError, load_encoder, open_checkpoint
from serve.api.middleware.access import KeyRing, build_key_warnings, is_loopback
from serve.config.settings import Settings
from serve.deployments.cluster import (
    build_local_cluster_options,
    create_private_folder,
    enable_token_auth,
    hide_settings,
)
from serve.launch import ingress
from serve.launch.address import check_address, create_client, format_ready_line
from serve.launch.watch import FolderWatcher
from serve.shutdown import GracefulShutdown

if TYPE_CHECKING:
    from ray.serve import Application

StatusCallback = Callable[[str], None]

_POLL_INTERVAL_S = 0.3
# Time for responses of gateways to pass the ingress.
_LAST_BYTES_S = 0.5


def run_with_ray(
    settings: Settings, notify: StatusCallback, watched: Mapping[str, Path] = MappingProxyType({})
) -> None:
    """Serve on Ray until a signal comes: on the cluster of RAY_ADDRESS, or else on a private one.

    Does not return: the process ends.
    """
    joins_cluster = bool(os.environ.get("RAY_ADDRESS"))
    ingress_kind = ingress.choose_ingress(settings, not joins_cluster)
    if not joins_cluster:
        enable_token_auth(settings.insecure_ray)
    run_preflight_checks(settings, notify)
    with create_private_folder() as folder:
        for name, value in ingress.RAY_DEFAULTS.items():
            os.environ.setdefault(name, value)
        if settings.log_format == "json":
            # A line with the name of its process in front is not JSON.
            os.environ.setdefault("RAY_DISABLE_WORKER_LOG_PREFIX", "1")
        if joins_cluster:
            notify(f"connecting to Ray at {os.environ['RAY_ADDRESS']}")
        else:
            os.environ.update(ingress.build_environment(ingress_kind, settings, Path(folder)))
            notify("starting Ray")
        exit_code = _serve(
            settings, ingress_kind, None if joins_cluster else Path(folder), notify, watched
        )
    # Nothing is left to do, and the teardown of torch and Ray takes seconds.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _serve(
    settings: Settings,
    ingress_kind: ingress.Ingress,
    folder: Path | None,
    notify: StatusCallback,
    watched: Mapping[str, Path],
) -> int:
    """Serve until a signal comes, on a private cluster, or without a folder on RAY_ADDRESS."""
    import ray
    from ray import serve as ray_serve

    from serve.app import APP_NAME, build_application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with hide_settings():
        ray.init(logging_level="ERROR", **(build_local_cluster_options(folder) if folder else {}))
    # After `ray.init`, which sets handlers too. `sys.exit`, so that a private cluster ends as well.
    with GracefulShutdown(end=sys.exit) as shutdown:
        try:
            # On a cluster of others, Serve may listen elsewhere than the settings say.
            is_private = folder is not None and is_loopback(settings.host)
            watcher = _create_watcher(settings, watched)
            application = build_application(
                settings,
                admin_without_key="all" if is_private else "none",
                admin_key=watcher.admin_key if watcher else "",
            )
            _run_application(settings, application, ingress_kind, shutdown, notify, watcher)
            if not folder:  # a private cluster ends at once, without answering 404 until then
                ray_serve.delete(APP_NAME)
        except SystemExit:  # the second signal; Ray turns it into another exit code
            return shutdown.exit_code
        finally:
            if not folder:
                # Others use the cluster: delete this application and nothing else.
                with contextlib.suppress(RuntimeError):  # without one, if Serve did not start
                    ray_serve.delete(APP_NAME, _blocking=False)
            ray.shutdown()
    return 0


def _create_watcher(settings: Settings, watched: Mapping[str, Path]) -> FolderWatcher | None:
    return FolderWatcher(settings, watched) if watched else None


def _run_application(
    settings: Settings,
    application: Application,
    ingress_kind: ingress.Ingress,
    shutdown: GracefulShutdown,
    notify: StatusCallback,
    watcher: FolderWatcher | None,
) -> None:
    """Run the application until a signal comes and accepted requests are answered."""
    from ray import serve as ray_serve
    from ray.serve.exceptions import DeploymentUnavailableError
    from ray.serve.schema import LoggingConfig

    from serve.app import APP_NAME

    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    try:
        ray_serve.start(
            http_options=_build_http_options(settings, ingress_kind), logging_config=quiet
        )
    except RuntimeError as error:  # the port was taken after the check, or HAProxy failed
        raise ModelLoadError(
            f"Ray Serve cannot listen on {settings.host}:{settings.port}: "
            f"{str(error).strip().splitlines()[-1]}"
        ) from error
    target = ray_serve.RunTarget(application, APP_NAME, "/", quiet)
    ray_serve.run_many([target], wait_for_applications_running=False)
    may_have_accepted = _await_ready(settings, shutdown, notify)
    if watcher is not None:
        watcher.start()
    shutdown.wait()
    notify("stopping: finishing accepted requests (signal again to stop at once)")
    if may_have_accepted:
        # Before the application is deleted: Serve would stop gateways and scorers at the same
        # moment. A gateway that dies meanwhile has nothing left to finish.
        try:
            gateways = ray_serve.get_app_handle(APP_NAME).broadcast("drain")
            gateways.results(return_exceptions=True)
        except DeploymentUnavailableError:
            notify("no gateway is up; none has a request to finish")
        time.sleep(_LAST_BYTES_S)


def _build_http_options(settings: Settings, ingress_kind: ingress.Ingress) -> Any:
    from ray.serve.config import HTTPOptions

    if ingress_kind == "haproxy":
        # HAProxy itself listens on the address of the settings; see `serve.launch.haproxy`.
        return HTTPOptions(host=ingress.INTERNAL_HOST, port=settings.port)
    return HTTPOptions(
        host=settings.host,
        port=settings.port,
        ssl_keyfile=settings.tls_key_file,
        ssl_certfile=settings.tls_cert_file,
    )


def run_locally(
    settings: Settings, notify: StatusCallback, watched: Mapping[str, Path] = MappingProxyType({})
) -> None:
    """Serve from this process, without Ray, until a signal comes; see `run_with_ray`."""
    from serve.launch import local

    run_preflight_checks(settings, notify)
    local.run(settings, notify, _create_watcher(settings, watched))


def run_preflight_checks(settings: Settings, notify: StatusCallback) -> None:
    """Check checkpoints, API keys and the address before anything is started."""
    keys, admin_keys = KeyRing.from_settings(settings), KeyRing.from_settings(settings, admin=True)
    for warning in build_key_warnings(settings, keys, admin_keys):
        notify(warning)
    for model in settings.models:
        notify(f"checking {model.alias}")
        config = model.to_model_config()
        # Weights of a hub checkpoint are fetched by the replicas.
        load_encoder(config, open_checkpoint(config, weights=not model.is_on_hub))
    check_address(settings)


def _await_ready(settings: Settings, shutdown: GracefulShutdown, notify: StatusCallback) -> bool:
    """Wait until the service is ready or a signal comes; return whether a gateway was up."""
    from serve.app import APP_NAME

    last_status, gateway_is_up = "", False
    with create_client(settings) as client:
        while shutdown.received_signal is None:
            if failure := find_deploy_failure(APP_NAME):
                raise ModelLoadError(failure)
            state = _fetch_readiness(client)
            if state.get("ready"):
                notify(format_ready_line(settings))
                return True
            gateway_is_up = gateway_is_up or "models" in state
            loading = [a for a, m in state.get("models", {}).items() if m["state"] != "ready"]
            status = f"loading {', '.join(loading)}" if loading else "starting the gateway"
            if status != last_status:
                notify(status)
                last_status = status
            time.sleep(_POLL_INTERVAL_S)
        # The gateway may have come up since the last request.
        return gateway_is_up or "models" in _fetch_readiness(client)


def _fetch_readiness(client: httpx.Client) -> dict[str, Any]:
    try:
        body = client.get("/ready").json()
    except (httpx.HTTPError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def find_deploy_failure(app_name: str) -> str | None:
    """Return the reason why an application will not start; None while it still may."""
    from ray import serve as ray_serve
    from ray.serve.schema import ApplicationStatus

    application = ray_serve.status().applications.get(app_name)
    if application is None or application.status != ApplicationStatus.DEPLOY_FAILED:
        return None
    messages = [application.message, *(d.message for d in application.deployments.values())]
    for message in messages:
        # The last error: Ray's text names it after the errors that led to it.
        if details := re.findall(r"\brm_core\.errors\.\w+: (.+)", message):
            return str(details[-1])
    return "; ".join(message for message in messages if message)
