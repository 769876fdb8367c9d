"""Stands in for the HAProxy binary that Ray Serve starts, and becomes it.

Ray writes HAProxy's configuration from a template of its own, whose statistics and Prometheus
pages listen on every interface, and starts the binary anew for every change. This program edits
what Ray has just written and then executes the binary: those pages move to sockets in a private
folder, only the service's own address is listened on, in HTTP/1 alone, and HAProxy's own errors
have the shape of all others. Not so what its parser cannot read: before there is a request it knows
no error pages, and answers 400 with HTML of its own.

Run by its path, by `serve.launch.ingress.write_launcher`: standard library only.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

# A folder of the private one, for Ray writes pages there too.
ERROR_PAGES = "error-pages"
# Of all connections, for one address: the others have room for a health check, whatever it does.
_MAX_SHARE_PER_ADDRESS = 0.75
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> None:
    """Edit the configuration and become HAProxy.

    Args:
        arguments: private folder with the error pages, the binary, the address to listen on, the
            seconds in which a request's head must arrive; then the binary's own, with `-f FILE`
            among them.
    """
    folder, binary, listen, head_timeout_s, *rest = arguments
    file = Path(rest[rest.index("-f") + 1])
    try:
        file.write_text(harden_config(file.read_text(), Path(folder), listen, int(head_timeout_s)))
    except ValueError as error:
        sys.exit(f"skyreward: {error}")
    # Ray's process that starts HAProxy may be killed: whoever listens then must end with it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *rest])


def harden_config(config: str, folder: Path, listen: str, head_timeout_s: int) -> str:
    """Ray's configuration with every listener in its place.

    Args:
        config: as Ray wrote it.
        folder: private, for the sockets of pages that nobody outside may see; with the error pages
            `STATUS.http` in its folder `ERROR_PAGES`.
        listen: address, port and options of the service, as HAProxy's `bind` wants them.
        head_timeout_s: in which a request's head must arrive.

    Raises:
        ValueError: it does not look as expected, so that something might be left open.
    """
    changes = (
        (r"bind :\d+$", f"bind unix@{folder}/prometheus.sock mode 600"),
        (r"bind \*:\d+$", f"bind unix@{folder}/statistics.sock mode 600"),
        (r"bind 127\.0\.0\.1:\d+$", _render_frontend(config, listen)),
        (r"mode http\n    option log-health-checks$", _render_defaults(folder, head_timeout_s)),
        # What Ray says while there is no application yet; trainers never repeat a 4xx.
        (r"http-request return status 404 content-type .*$", "http-request deny deny_status 503"),
    )
    config = re.sub(r"^ +errorfile .*\n", "", config, flags=re.MULTILINE)
    for pattern, replacement in changes:
        config, count = re.subn(
            rf"^( *){pattern}", rf"\g<1>{replacement}", config, flags=re.MULTILINE
        )
        if count != 1:
            raise ValueError(
                f"this version of Ray configures HAProxy in another way (`{pattern}` is there "
                f"{count} times); use the setting `ingress: proxy`"
            )
    if (count := len(re.findall(r"^ *bind ", config, flags=re.MULTILINE))) != 3:
        raise ValueError(
            f"this version of Ray has HAProxy listen on {count} addresses instead of 3; use the "
            "setting `ingress: proxy`"
        )
    return config


def _render_frontend(config: str, listen: str) -> str:
    found = re.search(r"^ *maxconn (\d+)$", config, flags=re.MULTILINE)
    most = int(found[1]) if found else 4096
    lines = [
        f"bind {listen}",
        "stick-table type ipv6 size 100k expire 1m store conn_cur",
        "tcp-request connection track-sc0 src",
        "tcp-request connection reject if "
        f"{{ sc0_conn_cur gt {max(1, int(most * _MAX_SHARE_PER_ADDRESS))} }}",
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
