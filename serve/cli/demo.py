"""`make demo`: start the real service on the demo model, score the sample pairs, print a table.

The service runs in a separate process, which is started and stopped as an operator would. Exit code
0 means that every pair was scored and that the service stopped cleanly.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import httpx
from rich.table import Table

from rm_core import RewardError, seeds_dir
from serve.client import ScoringClient, ServiceError
from serve.console import Console
from serve.escaping import escape_line

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 60.0
_FREE_PORTS = range(20_000, 30_000)
_PORT_NUMBERS = itertools.count()


def main() -> int:
    """Run the demo and return the exit code."""
    lines = (seeds_dir() / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    try:
        with run_service() as url, ScoringClient(url) as client:
            fields = ("prompt", "chosen", "rejected")
            body = {"pairs": [{field: pair.get(field) for field in fields} for pair in pairs]}
            response = client.post("/v1/compare", body)
    except RewardError as error:
        print(f"demo: {escape_line(error.detail)}", file=sys.stderr)
        return 1
    print_pairs(pairs, response)
    return 1 if any("error" in result for result in response["results"]) else 0


@contextlib.contextmanager
def run_service(
    *options: str,
    output: IO[bytes] | None = None,
    start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen,
) -> Iterator[str]:
    """Run a service in a separate process; yield its URL once it is ready.

    Args:
        options: options of `skyreward serve` other than `--port`.
        output: file for standard output and standard error of the service; None to inherit them.
        start: starts a process, with the arguments of `subprocess.Popen`.

    Raises:
        ServiceError: the service did not become ready, or did not stop cleanly.
    """
    port = find_free_port()
    command = [sys.executable, "-m", "serve.cli.main", "serve", "--port", str(port), *options]
    process = start(command, start_new_session=True, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        _await_ready(process, url)
        yield url
    finally:
        # Signal only the service: it stops Ray's processes itself.
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    if code != 0:
        raise ServiceError(f"the service exited with code {code} instead of 0")


def find_free_port() -> int:
    """Return a free port of 127.0.0.1, a different one at each call.

    A service takes seconds until it listens, and Ray opens many connections meanwhile. The port is
    therefore from a range that operating systems use neither for outgoing connections nor for port
    0, and each process starts at a different port of the range.

    Raises:
        ServiceError: all ports of the range are in use.
    """
    for _ in _FREE_PORTS:
        port = _FREE_PORTS[(16 * os.getpid() + next(_PORT_NUMBERS)) % len(_FREE_PORTS)]
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise ServiceError(
        f"all ports from {_FREE_PORTS[0]} to {_FREE_PORTS[-1]} are in use; stop the programs that "
        "use them"
    )


def _await_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    with httpx.Client(base_url=url, trust_env=False) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServiceError(f"the service exited with code {process.returncode}")
            with contextlib.suppress(httpx.HTTPError):
                if client.get("/ready").status_code == httpx.codes.OK:
                    return
            time.sleep(0.3)
    raise ServiceError(f"the service was not ready after {_START_TIMEOUT_S:.0f} s")


def print_pairs(pairs: Sequence[Mapping[str, Any]], response: Mapping[str, Any]) -> None:
    """Print pairs with their results from a response of `/v1/compare`, in order."""
    console = Console(width=120)
    table = Table(title="Sample pairs, scored over HTTP", title_justify="left")
    for header, justify in (
        ("pair", "left"),
        ("chosen", "right"),
        ("rejected", "right"),
        ("margin", "right"),
        ("probability", "right"),
        ("rejected is", "left"),
    ):
        table.add_column(header, justify=justify)  # type: ignore[arg-type]
    for pair, result in zip(pairs, response["results"], strict=True):
        if error := result.get("error"):
            table.add_row(pair["id"], "-", "-", "-", "-", f"{error['code']}: {error['message']}")
            continue
        numbers = [
            f"{result[key]:.3f}"
            for key in ("chosen_reward", "rejected_reward", "margin", "probability")
        ]
        table.add_row(pair["id"], *numbers, pair["why"])
    console.print(table)
    num_positive = sum(result.get("margin", 0) > 0 for result in response["results"])
    usage = response["usage"]
    console.print(
        f"{num_positive} of {len(pairs)} margins are positive; {usage['num_tokens']} tokens, "
        f"{usage['num_computed_tokens']} computed. The demo model is a toy for trying the service."
    )


if __name__ == "__main__":
    sys.exit(main())
