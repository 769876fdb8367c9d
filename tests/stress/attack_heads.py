"""Heads of requests that are huge, or never end, and more connections than there are files.

What is measured, against `skyreward serve --local`, and `/health` is asked all the while: headers
of 60 and 110 MB (CPU of the service, and what it answers); 50 connections whose heads stay
unfinished, and one that says nothing (how long they stay open); 320 connections to a service that
may open 300 files. Then the CPU of one post of 4 KB in uvicorn alone, with its own parsers and with
our limits, in turns. The last line is one JSON object.

    python tests/stress/attack_heads.py [--megabytes 60,110] [--heads 50] [--rounds 7]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import uvicorn
from health_latency import ask
from service import Service, cpu_s, parser_of, service_of
from stress_result import finish, percentiles

from serve.cli.demo import find_free_port

HEAD_WITHIN_S = 40.0
HEALTH_WITHIN_S = 0.5
CPU_WITHIN_S = 1.0
FILES, CONNECTIONS = 300, 320
START = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
POST += b"Content-Length: 4096\r\n\r\n"
POST += b" " * 4096
PARSERS = ("httptools", "h11", "ours")


@contextlib.contextmanager
def health_of(url: str) -> Iterator[list[float]]:
    """Latencies of `/health` while the block runs; infinity where it was not answered."""
    found: list[float] = []
    ended = threading.Event()

    def ask_until_ended() -> None:
        while not ended.is_set():
            ask(url, 0.5, found)

    thread = threading.Thread(target=ask_until_ended)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def huge_header(service: Service, port: int, megabytes: int) -> dict[str, Any]:
    """What a header of so many MB takes, and what comes of it."""
    assert service.pid is not None
    before, sent, answer = cpu_s(service.pid), 0, b""
    with health_of(service.url) as health, connect(port) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(START + b"X: ")
            for _ in range(16 * megabytes):
                connection.sendall(b"a" * 65_536)
                sent += 65_536
        connection.settimeout(2)
        with contextlib.suppress(OSError):
            answer = connection.recv(65_536)
    return {
        "megabytes": megabytes,
        "sent_mb": sent >> 20,
        "answer": answer.partition(b"\r\n")[0].decode(),
        "cpu_s": round(cpu_s(service.pid) - before, 2),
        "health_ms": percentiles(health),
    }


def unfinished(port: int, number: int) -> dict[str, Any]:
    """Seconds until connections with unfinished heads, and a silent one, were closed."""
    connections = [connect(port) for _ in range(number + 1)]
    opened = time.perf_counter()
    for connection in connections[1:]:
        connection.sendall(START)
    ends: list[float] = []
    waiting = set(connections)
    while waiting and time.perf_counter() - opened < HEAD_WITHIN_S:
        for connection in select.select(list(waiting), [], [], 1)[0]:
            if not connection.recv(65_536):
                waiting.discard(connection)
                ends.append(time.perf_counter() - opened)
    for connection in connections:
        connection.close()
    return {
        "still_open": len(waiting),
        "closed_after_s": [round(s, 1) for s in ends[:1] + ends[-1:]],
    }


@contextlib.contextmanager
def few_files() -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A service that may open `FILES` files: its port, and its process."""
    port = find_free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "serve.cli.main", "serve", "--local", "--port", str(port)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES)),
    )
    try:
        while process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False).is_success:
                    break
            time.sleep(0.3)
        yield port, process
    finally:
        process.kill()
        process.wait()


def too_many_connections() -> dict[str, Any]:
    """What `/health` answers beside more idle connections than there are files, and the end."""
    with few_files() as (port, process), contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connect(port)).sendall(START)
        time.sleep(1)
        statuses: list[str] = []
        for _ in range(20):
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=5)
                statuses.append(str(answer.status_code))
            except httpx.HTTPError as error:
                statuses.append(type(error).__name__)
        files = len(os.listdir(f"/proc/{process.pid}/fd"))
        process.send_signal(signal.SIGTERM)
        started = time.perf_counter()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        took = time.perf_counter() - started
        return {
            "health": {status: statuses.count(status) for status in set(statuses)},
            "files": files,
            "exit_code": process.returncode,
            "sigterm_s": round(took, 1),
        }


async def _size(scope: Any, receive: Any, send: Any) -> None:
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = b"%d" % size
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


def serve_parser(name: str, port: int) -> None:
    """In a process of its own: uvicorn with one parser."""
    http: Any = name
    if name == "ours":
        http = "serve.api.middleware.connections:BoundedConnection"
    uvicorn.run(_size, port=port, http=http, lifespan="off", log_level="critical")


def cpu_of_a_post(pid: int, port: int, posts: int) -> float:
    """Microseconds."""
    with connect(port) as connection:
        before = cpu_s(pid)
        for _ in range(posts):
            connection.sendall(POST)
            while not connection.recv(65_536).endswith(b"4096"):
                pass
        return 1e6 * (cpu_s(pid) - before) / posts


def cpu_of_parsers(rounds: int, posts: int) -> dict[str, Any]:
    """Microseconds of a post, in turns; the differences to httptools, turn by turn."""
    found: dict[str, list[float]] = {name: [] for name in PARSERS}
    with contextlib.ExitStack() as stack:
        started = {}
        for name in PARSERS:
            port = find_free_port()
            command = [sys.executable, __file__, "--parser", name, str(port)]
            process = subprocess.Popen(command)
            stack.callback(process.wait)
            stack.callback(process.kill)
            started[name] = process.pid, port
            while process.poll() is None:
                with contextlib.suppress(ConnectionRefusedError), connect(port):
                    break
                time.sleep(0.1)
        for _ in range(rounds):
            for name, (pid, port) in started.items():
                found[name].append(cpu_of_a_post(pid, port, posts))
    base = found["httptools"]
    return {
        name: {
            "us": round(statistics.median(times), 1),
            "more_us": round(statistics.median(b - a for a, b in zip(base, times, strict=True)), 1),
        }
        for name, times in found.items()
    }


def main() -> int:
    if sys.argv[1:2] == ["--parser"]:
        serve_parser(sys.argv[2], int(sys.argv[3]))
        return 0
    parser = parser_of(__doc__)
    parser.add_argument("--megabytes", default="60,110", help="of the headers")
    parser.add_argument("--heads", type=int, default=50, help="that stay unfinished")
    parser.add_argument("--rounds", type=int, default=7, help="of posts, in turns")
    parser.add_argument("--posts", type=int, default=5_000, help="of a round")
    options: argparse.Namespace = parser.parse_args()
    with service_of(options, "--local") as service:
        port = httpx.URL(service.url).port
        assert port is not None
        headers = [huge_header(service, port, int(size)) for size in options.megabytes.split(",")]
        heads = unfinished(port, options.heads)
    crowd = too_many_connections()
    parsers = {}
    with contextlib.suppress(ImportError):  # before there were limits
        import serve.api.middleware.connections  # noqa: F401

        parsers = cpu_of_parsers(options.rounds, options.posts)
    checks = {
        "huge headers are answered 431": all("431" in h["answer"] for h in headers),
        f"each takes less than {CPU_WITHIN_S:g} s of CPU": all(
            h["cpu_s"] < CPU_WITHIN_S for h in headers
        ),
        f"/health answers within {HEALTH_WITHIN_S:g} s meanwhile": all(
            h["health_ms"]["max"] < 1000 * HEALTH_WITHIN_S for h in headers
        ),
        f"unfinished heads are closed within {HEAD_WITHIN_S:g} s": not heads["still_open"],
        "/health answers beside more connections than files": set(crowd["health"]) == {"200"},
        "SIGTERM with half-open connections ends in order": crowd["exit_code"] == 0,
    }
    figures = {"headers": headers, "heads": heads, "crowd": crowd, "parsers_us": parsers}
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
