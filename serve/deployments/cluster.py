"""A Ray cluster to work on: one of our own, or one that runs already.

Reads and sets Ray's variables in the environment, which have to be there before Ray is imported.
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

# `local`, or `ray.init` would join whatever cluster runs on this machine; a small store, since
# batches go by value.
_OWN_CLUSTER: dict[str, Any] = {
    "address": "local",
    "include_dashboard": False,
    "object_store_memory": 100 * 2**20,
}
_TOKEN_FILE = ".ray/auth_token"
_NO_TOKEN = (
    "whoever reaches a port of Ray, and they listen on every interface, can run code as this user"
)
# Read by Serve on every node before its proxy listens.
PROXY_CALLBACK = (
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
    "serve.api.middleware.ray_proxy:middlewares",
)

_CONNECT_TIMEOUT_S = 10.0
# Of clusters of our own; deleted when this process ends, after Ray, which is imported later.
_folders: list[tempfile.TemporaryDirectory[str]] = []


def enable_token_auth(insecure: bool = False) -> None:
    """Ray's own ports listen on every interface; only our own processes know the token.

    Args:
        insecure: take a Ray without one, if RAY_AUTH_MODE asks for that.

    Raises:
        ModelLoadError: it asks for that, and `insecure` is false.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() != "token":
        if insecure:
            return
        raise ModelLoadError(
            f"RAY_AUTH_MODE is {mode!r}: {_NO_TOKEN}. Unset it; or, for `skyreward serve` where a "
            "firewall keeps all others off these ports, give --insecure-ray"
        )
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    if mode is None or not (named or (Path.home() / _TOKEN_FILE).exists()):
        # By itself Ray would keep one in that file, which it lets everybody on this machine read.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def warn_without_token() -> None:
    """Say aloud that the Ray cluster, of which this process is a part by now, has no token."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":  # Ray itself sets it, if it has one
        logger.warning(
            "this Ray cluster asks for no token: %s. Start all of its nodes with "
            "RAY_AUTH_MODE=token, or see that a firewall keeps all others off its ports",
            _NO_TOKEN,
        )


def warn_without_limits() -> None:
    """Say aloud, in an actor of Serve, that Serve's proxy on this node has no limits of ours."""
    has_haproxy = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
    if not has_haproxy and os.environ.get(PROXY_CALLBACK[0]) != PROXY_CALLBACK[1]:
        logger.warning(
            "Serve's proxy limits neither heads of requests nor connections, so that any client "
            "can stop it for all: start the nodes of this Ray with %s=%s, or let clients reach it "
            "through another proxy alone",
            *PROXY_CALLBACK,
        )


def build_local_cluster_options(folder: Path) -> dict[str, Any]:
    """Options of `ray.init` for a cluster of our own, which ends with this process.

    Args:
        folder: private, with a short path; for sockets and logs, which Ray by itself would put
            where everybody on this machine may rename them.
    """
    return {**_OWN_CLUSTER, "_temp_dir": str(folder / "ray")}


@contextlib.contextmanager
def hide_settings() -> Iterator[None]:
    """While Ray starts: its processes inherit the environment, and API keys may be in there."""
    ours = {name: os.environ[name] for name in os.environ if name.upper().startswith("SKYREWARD_")}
    for name in ours:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(ours)


def create_private_folder() -> tempfile.TemporaryDirectory[str]:
    """A new folder of this user alone, deleted at the end of its `with` or of this process."""
    # Not under TMPDIR: the paths of sockets must be short.
    return tempfile.TemporaryDirectory(prefix="sky-", dir="/tmp", ignore_cleanup_errors=True)


def connect(address: str) -> bool:
    """Join a cluster, unless this process is in one already; may be called on any thread.

    Args:
        address: `local` for one of our own, which ends with this process; `auto` for the one that
            RAY_ADDRESS names, or that runs on this machine; `HOST:PORT` of its head, or
            `ray://HOST:PORT` of its client server.

    Returns:
        Whether it was joined here, and is left by `ray.shutdown()`.

    Raises:
        ModelLoadError: there is no such cluster, it does not let us in, or RAY_AUTH_MODE asks for
            one of our own without a token.
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
        # What actors write goes to Ray's own logs: it would tear a progress bar apart.
        with hide_settings():
            ray.init(logging_level="CRITICAL", log_to_driver=False, **options)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()
        raise ModelLoadError(
            f"no Ray cluster at {address!r}: {said[0] if said else type(error).__name__}; give "
            "`local` to start one here, `auto` for the one that runs on this machine or that "
            "RAY_ADDRESS names, HOST:PORT or ray://HOST:PORT; a cluster that has a token needs it "
            "here too (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN)"
        ) from error
    if address != "local":
        warn_without_token()
    return True


def _check_reachable(address: str) -> None:
    """Whether anybody is there; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("it is no address")
    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
