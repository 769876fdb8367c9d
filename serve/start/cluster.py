"""A Ray cluster to work on: one of our own, or one that runs already.

Reads and sets Ray's variables in the environment, which have to be there before Ray is imported.
"""

from __future__ import annotations

import os
import secrets
import socket
from typing import Any

from rm_core import ModelLoadError

# `local`, or `ray.init` would join whatever cluster runs on this machine; a small store, since
# batches go by value.
OWN_CLUSTER: dict[str, Any] = {
    "address": "local",
    "include_dashboard": False,
    "object_store_memory": 100 * 2**20,
}

_KNOCK_S = 10.0


def guard_with_a_token() -> None:
    """Ray's own ports listen on every interface; only our own processes know the token."""
    if "RAY_AUTH_MODE" not in os.environ:
        # By itself Ray would keep one in a file in the home folder.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def connect(address: str) -> bool:
    """Join a cluster, unless this process is in one already; may be called on any thread.

    Args:
        address: `local` for one of our own, which ends with this process; `auto` for the one that
            RAY_ADDRESS names, or that runs on this machine; `HOST:PORT` of its head, or
            `ray://HOST:PORT` of its client server.

    Returns:
        Whether it was joined here, and is left by `ray.shutdown()`.

    Raises:
        ModelLoadError: there is no such cluster, or it does not let us in.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        guard_with_a_token()
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        return False
    options = OWN_CLUSTER if address == "local" else {"address": address}
    try:
        if address not in ("local", "auto"):
            _knock(address)
        # What actors write goes to Ray's own logs: it would tear a progress bar apart.
        ray.init(logging_level="CRITICAL", log_to_driver=False, **options)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()
        raise ModelLoadError(
            f"no Ray cluster at {address!r}: {said[0] if said else type(error).__name__}; give "
            "`local` to start one here, `auto` for the one that runs on this machine or that "
            "RAY_ADDRESS names, HOST:PORT or ray://HOST:PORT; a cluster that has a token needs it "
            "here too (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN)"
        ) from error
    return True


def _knock(address: str) -> None:
    """Whether anybody is there; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("it is no address")
    socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()
