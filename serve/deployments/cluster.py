"""Starts a private Ray cluster, or joins one that runs already.

Reads and sets Ray's environment variables, which have to be set before Ray is imported.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rm_core import ModelLoadError

logger = logging.getLogger(__name__)

# Without `local`, `ray.init` would join any cluster that runs on this machine. The object store is
# small, since batches are passed by value.
_OWN_CLUSTER: dict[str, Any] = {
    "address": "local",
    "include_dashboard": False,
    "object_store_memory": 100 * 2**20,
}
_TOKEN_FILE = ".ray/auth_token"
_NO_TOKEN = (
    "Ray's ports listen on every interface, and anyone who reaches one can run code as this user"
)
# Read by Serve on every node before its proxy listens.
PROXY_CALLBACK = (
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
    "serve.api.middleware.ray_proxy:middlewares",
)

_CONNECT_TIMEOUT_S = 10.0
# Folders of private clusters, deleted when this process ends, after Ray, which is imported later.
_folders: list[tempfile.TemporaryDirectory[str]] = []


def enable_token_auth(insecure: bool = False) -> None:
    """Have Ray require a token, since its ports listen on every interface.

    Only processes of this cluster know the token. If `insecure`, Ray without a token is accepted
    where RAY_AUTH_MODE asks for that.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() != "token":
        if insecure:
            return
        raise ModelLoadError(
            f"RAY_AUTH_MODE is {mode!r}: {_NO_TOKEN}. Unset it; or, for `skyreward serve` where a "
            "firewall keeps all others off these ports, pass --insecure-ray"
        )
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    if mode is None or not (named or (Path.home() / _TOKEN_FILE).exists()):
        # Ray by itself would keep a token in that file, readable by every user of this machine.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def warn_without_token() -> None:
    """Log a warning if the Ray cluster that this process belongs to has no token."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":  # set by Ray itself if it has one
        logger.warning(
            "this Ray cluster requires no token: %s. Start all of its nodes with "
            "RAY_AUTH_MODE=token, or make sure that a firewall keeps all others off its ports",
            _NO_TOKEN,
        )


def warn_without_limits() -> None:
    """Log a warning, in an actor of Serve, if Serve's proxy on this node lacks our limits."""
    has_haproxy = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
    if not has_haproxy and os.environ.get(PROXY_CALLBACK[0]) != PROXY_CALLBACK[1]:
        logger.warning(
            "Serve's proxy limits neither heads of requests nor connections, so that any client "
            "can stop it for all: start the nodes of this Ray with %s=%s, or let clients reach it "
            "only through another proxy",
            *PROXY_CALLBACK,
        )


def build_local_cluster_options(folder: Path) -> dict[str, Any]:
    """Return options of `ray.init` for a private cluster, which ends with this process.

    Its sockets and logs are in the private folder, whose path must be short: Ray by itself would
    put them where every user of this machine may rename them.
    """
    return {**_OWN_CLUSTER, "_temp_dir": str(folder / "ray")}


@contextlib.contextmanager
def hide_settings() -> Iterator[None]:
    """Hide settings while Ray starts: its processes inherit the environment with any API keys."""
    variables = {
        name: os.environ[name] for name in os.environ if name.upper().startswith("SKYREWARD_")
    }
    for name in variables:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(variables)


def create_private_folder() -> tempfile.TemporaryDirectory[str]:
    """Create a folder that only this user can read; deleted with its `with` or this process."""
    # Not under TMPDIR, because paths of sockets must be short.
    return tempfile.TemporaryDirectory(prefix="sky-", dir="/tmp", ignore_cleanup_errors=True)


def connect(address: str) -> bool:
    """Join a cluster, unless this process is in one already; may be called on any thread.

    Args:
        address: `local` for a private cluster, which ends with this process; `auto` for the cluster
            that RAY_ADDRESS names, or that runs on this machine; `HOST:PORT` of a cluster's head.

    Returns:
        Whether this call joined the cluster, and `ray.shutdown()` has to leave it.

    Raises:
        ModelLoadError: the cluster does not exist or refuses the connection, or RAY_AUTH_MODE asks
            for a private cluster without a token.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        enable_token_auth()
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        return False
    options = {"address": address}
    if address == "local":
        _folders.append(create_private_folder())
        options = build_local_cluster_options(Path(_folders[-1].name))
    try:
        if address not in ("local", "auto"):
            _check_reachable(address)
        # Output of actors goes to Ray's own logs: it would garble a progress bar.
        with hide_settings():
            ray.init(logging_level="CRITICAL", log_to_driver=False, **options)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        raise ModelLoadError(
            f"no Ray cluster at {address!r}: {lines[0] if lines else type(error).__name__}; give "
            "`local` to start one here, `auto` for the one that runs on this machine or that "
            "RAY_ADDRESS names, or HOST:PORT of its head; a cluster that has a token needs it "
            "here too (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN)"
        ) from error
    if address != "local":
        warn_without_token()
    return True


def _check_reachable(address: str) -> None:
    """Fail fast if the address is unreachable; Ray itself retries for minutes."""
    if address.startswith("ray://"):
        raise ValueError("Ray's client server cannot pass calls to replicas")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("not an address")
    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
