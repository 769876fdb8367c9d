"""The least that a post can cost on Ray on this machine: Serve as `skyreward serve` sets it up.

An application of the same two deployments that does nothing: `/http` reads a body and answers;
`/call` also sends token ids to the other deployment, where one thread multiplies matrices for as
long as a small forward pass takes, and answers the seconds.

- `http_ms`: CPU of all processes for a post to `/http`, without what they take when idle.
- `lone_http_ms`: median time of a lone post to `/http`.
- `lone_call_beyond_ms`: median time of a lone post to `/call` beyond the matrices.

    python tests/stress/floor_on_ray.py PORT    serves it, until SIGTERM
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import torch
from load import Post, closed_loop, lone_latencies, lone_posts
from service import Service

_START_S = 120.0
_ANSWER = b'{"results": [{"index": 0, "reward": 1.25}], "usage": {"num_tokens": 130}}'
_READY = b'{"ready": true, "models": {}}'
_TOKENS = tuple(range(130))  # of a post of 400 bytes
_FORWARD_S = 0.02
_SIZE = 512


def serve_bare(port: int) -> None:
    """Serve it in the place of the application; does not return."""
    from serve.config.settings import Settings
    from serve.launch.ray import run_with_ray

    # Not put into the real module: that one imports Ray, whose environment is not made yet.
    sys.modules["serve.app"] = SimpleNamespace(APP_NAME="skyreward", build=_build)  # type: ignore[assignment]
    run_with_ray(Settings(port=port), lambda line: print(line, file=sys.stderr))


def _build(_: object) -> Any:
    from ray import serve as ray_serve

    class Scorer:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self._thread = ThreadPoolExecutor(1)

        async def score_batch(self, _: list[tuple[int, ...]]) -> float:
            loop = asyncio.get_running_loop()
            seconds: float = await loop.run_in_executor(self._thread, _multiply)
            return seconds

    @ray_serve.ingress()
    class Gateway:
        def __init__(self, scorer: Any) -> None:
            self._scorer = scorer.options(_by_reference=False)

        async def drain(self) -> None:
            pass

        def __serve_build_asgi_app__(self) -> Any:
            async def app(scope: Any, receive: Any, send: Any) -> None:
                await _app(self._scorer, scope, receive, send)

            return app

    little = {"ray_actor_options": {"num_cpus": 0.01}}
    scorer = ray_serve.deployment(Scorer).options(**little)
    gateway = ray_serve.deployment(Gateway).options(**little, max_ongoing_requests=1_000)
    return gateway.bind(scorer.bind())


def _multiply() -> float:
    """Seconds of it."""
    started = time.perf_counter()
    product, factors = torch.ones(_SIZE, _SIZE), torch.rand(8, _SIZE, _SIZE)
    for number in itertools.count():
        product = product @ factors[number % 8] / _SIZE
        if (seconds := time.perf_counter() - started) >= _FORWARD_S:
            return seconds
    raise AssertionError


async def _app(scorer: Any, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    while (await receive()).get("more_body"):
        pass
    answer = _READY if scope["path"] == "/ready" else _ANSWER
    if scope["path"] == "/call":
        answer = str(await scorer.score_batch.remote([_TOKENS])).encode()
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


@contextmanager
def _bare() -> Iterator[Service]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(Path(__file__).resolve()), str(port)]
    process = subprocess.Popen(command, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _START_S
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the bare application on Ray did not start")
            try:
                if httpx.get(f"{url}/ready", trust_env=False).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.3)
        time.sleep(2)  # until its main process has seen that too
        yield Service(url, process.pid, ray=True)
    finally:
        process.terminate()
        process.wait()


def floor_on_ray(
    posts: list[Post], lone: list[Post], clients: int, seconds: float
) -> dict[str, Any]:
    """What it costs; see the module.

    Args:
        posts: for the CPU.
        lone: for the times.
        clients: that post at the same time.
        seconds: for which they do.
    """
    with _bare() as service:
        idle = service.idle_cpu(seconds / 2)
        before, started = service.cpu_s(), time.perf_counter()
        endless = itertools.cycle(posts)
        outcomes = asyncio.run(closed_loop(service.url, endless, clients, seconds, route="/http"))
        taken = service.cpu_s() - before - idle * (time.perf_counter() - started)
        lone_s = lone_latencies(service.url, lone, "/http")
        beyond_s = [s - float(forward) for s, forward in lone_posts(service.url, lone, "/call")]
        return {
            "clients": clients,
            "http_ms": round(1000 * taken / len(outcomes), 3),
            "lone_http_ms": round(1000 * statistics.median(lone_s), 2),
            "lone_call_beyond_ms": round(1000 * statistics.median(beyond_s), 2),
        }


if __name__ == "__main__":
    serve_bare(int(sys.argv[1]))
