"""Wrapper of the HAProxy binary: Ray Serve starts it instead, and it then executes the binary.

Ray writes HAProxy's configuration from its own template, whose statistics and Prometheus pages
listen on every interface, and starts the binary again for every change. This program edits the
configuration that Ray has just written and then executes the binary: those pages move to sockets in
a private folder, HAProxy listens only on the service's own address and only for HTTP/1, and its
errors have the same body as all others. The exception is input that its parser cannot read: without
a request HAProxy uses no error pages, and answers 400 with its own HTML.

`serve.launch.ingress` runs this file by its path, so it imports the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

# Subfolder of the private folder, since Ray writes pages there too.
ERROR_PAGES = "error-pages"
# Maximum share of all connections for one address, so that health checks always find room.
_MAX_SHARE_PER_ADDRESS = 0.75
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> None:
    """Edit the configuration and execute HAProxy.

    Args:
        arguments: private folder with the error pages, the binary, the address to listen on, the
            seconds in which a request's head must arrive; then the arguments of the binary, with
            `-f FILE` among them.
    """
    folder, binary, listen, head_timeout_s, *rest = arguments
    file = Path(rest[rest.index("-f") + 1])
    try:
        file.write_text(harden_config(file.read_text(), Path(folder), listen, int(head_timeout_s)))
    except ValueError as error:
        sys.exit(f"skyreward: {error}")
    # The process of Ray that starts HAProxy may be killed: HAProxy must then end too.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *rest])


def harden_config(config: str, folder: Path, listen: str, head_timeout_s: int) -> str:
    """Return Ray's configuration with every listener moved.

    Args:
        config: configuration as Ray wrote it.
        folder: private folder for the sockets of internal pages, with the error pages `STATUS.http`
            in its subfolder `ERROR_PAGES`.
        listen: address, port and options of the service, in the syntax of HAProxy's `bind`.
        head_timeout_s: seconds in which a request's head must arrive.

    Raises:
        ValueError: the configuration does not look as expected, so a listener might stay open.
    """
    changes = (
        (r"bind :\d+$", f"bind unix@{folder}/prometheus.sock mode 600"),
        (r"bind \*:\d+$", f"bind unix@{folder}/statistics.sock mode 600"),
        (r"bind 127\.0\.0\.1:\d+$", _render_frontend(config, listen)),
        (r"mode http\n    option log-health-checks$", _render_defaults(folder, head_timeout_s)),
        # Ray answers 404 until there is an application, and trainers never retry a 4xx.
        (r"http-request return status 404 content-type .*$", "http-request deny deny_status 503"),
    )
    config = re.sub(r"^ +errorfile .*\n", "", config, flags=re.MULTILINE)
    for pattern, replacement in changes:
        config, count = re.subn(
            rf"^( *){pattern}", rf"\g<1>{replacement}", config, flags=re.MULTILINE
        )
        if count != 1:
            raise ValueError(
                f"this version of Ray configures HAProxy in another way (`{pattern}` occurs "
                f"{count} times); use the setting `ingress: proxy`"
            )
    if (count := len(re.findall(r"^ *bind ", config, flags=re.MULTILINE))) != 3:
        raise ValueError(
            f"this version of Ray has HAProxy listen on {count} addresses instead of 3; use the "
            "setting `ingress: proxy`"
        )
    return config


def _render_frontend(config: str, listen: str) -> str:
    match = re.search(r"^ *maxconn (\d+)$", config, flags=re.MULTILINE)
    max_connections = int(match[1]) if match else 4096
    lines = [
        f"bind {listen}",
        "stick-table type ipv6 size 100k expire 1m store conn_cur",
        "tcp-request connection track-sc0 src",
        "tcp-request connection reject if "
        f"{{ sc0_conn_cur gt {max(1, int(max_connections * _MAX_SHARE_PER_ADDRESS))} }}",
    ]
    return "\n    ".join(lines)


def _render_defaults(folder: Path, head_timeout_s: int) -> str:
    pages = sorted((folder / ERROR_PAGES).glob("*.http"))
    lines = [
        "mode http",
        "option log-health-checks",
        f"timeout http-request {head_timeout_s}s",
        *(f"errorfile {page.stem} {page}" for page in pages),
    ]
    return "\n    ".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
