"""Replicas are added, taken away and replaced by others under load: is any post lost?

What is measured: the application on Ray, behind the ingress that `skyreward serve` would choose,
and clients that post without end and never send anything twice. Meanwhile it is deployed again and
again, as an operator does with `serve deploy`: with more scorers, with fewer, and with other
settings of model and service, for which Serve replaces every scorer and every gateway. Every post
has to be answered 200, whole, in order and with the rewards of before. The score cache is off. The
last line is one JSON object.

    python tests/bench/hold/rolling.py [--clients 6] [--ingress haproxy|proxy]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chaos import TOLERANCE, Tally, posts_of, undisturbed
from load import Post, closed_loop
from mixes import Conversation, Writer
from started import Service, parser_of
from verdict import finish

from serve.settings import Settings
from serve.start import ingress

_QUIET_S = 6.0
# What is deployed, one after the other: the model's settings, then the service's.
STEPS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("more scorers", {"num_replicas": 3}, {}),
    ("fewer scorers", {"num_replicas": 1}, {}),
    ("another model setting", {"num_replicas": 2, "max_batch_tokens": 3_000}, {}),
    (
        "another service setting",
        {"num_replicas": 2, "max_batch_tokens": 3_000},
        {"max_messages": 99},
    ),
)


class Load:
    """Clients in a thread of their own, until they are told to stop."""

    def __init__(
        self, service: Service, pool: list[Conversation], options: argparse.Namespace
    ) -> None:
        self.tally = Tally(undisturbed(service, pool))
        self._over = False
        posts = self._until_over(posts_of(pool, options.seed))
        self._run = closed_loop(service.url, posts, options.clients, 1e9, self.tally.seen)
        self._thread = threading.Thread(target=asyncio.run, args=(self._run,))

    def _until_over(self, posts: Iterator[Post]) -> Iterator[Post]:
        for post in posts:
            if self._over:
                return
            yield post

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()


def deploy(settings: Settings) -> float:
    """As `serve deploy` does; seconds until all of it runs."""
    from ray import serve as ray_serve
    from ray.serve.schema import LoggingConfig

    from serve.app import APP_NAME, build

    started = time.perf_counter()
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    target = ray_serve.RunTarget(build(settings), APP_NAME, "/", quiet)
    ray_serve.run_many([target], wait_for_applications_running=True)
    return round(time.perf_counter() - started, 1)


def start_ray(settings: Settings, folder: str) -> None:
    """With the ingress of these settings, as `skyreward serve` starts it."""
    chosen = ingress.choose(settings, own_cluster=True)
    os.environ.update(ingress.RAY_DEFAULTS)
    os.environ.update(ingress.environment(chosen, settings, Path(folder)))
    import ray
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions

    ray.init(address="local", logging_level="ERROR", include_dashboard=False)
    host = ingress.INSIDE_HOST if chosen == "haproxy" else settings.host
    ray_serve.start(http_options=HTTPOptions(host=host, port=settings.port))


def settings_of(
    options: argparse.Namespace, port: int, model: dict[str, Any], service: dict[str, Any]
) -> Settings:
    models = [{"name": options.model, "alias": "demo", "cache_bytes": 0, **model}]
    common = {"port": port, "num_gateways": 2, "log_level": "WARNING", "ingress": options.ingress}
    return Settings.of(models=models, **common, **service)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--ingress", choices=["auto", "haproxy", "proxy"], default="auto")
    options = parser.parse_args()
    if options.url:
        parser.error("this deploys by itself: leave --url out")
    port = free_port()
    first = settings_of(options, port, {"num_replicas": 2}, {})
    took: dict[str, float] = {}
    replaced: dict[str, bool] = {}
    with tempfile.TemporaryDirectory(prefix="sky-", dir="/tmp") as folder:
        start_ray(first, folder)
        deploy(first)
        service = Service(f"http://127.0.0.1:{port}", os.getpid(), ray=True)
        if not service.settle(2, 2):
            raise SystemExit("the service did not become ready")
        with Load(service, Writer(options.seed).pool(), options) as load:
            time.sleep(_QUIET_S)
            for name, model, changes in STEPS:
                before = {p.pid for p in (*service.scorers(), *service.gateways())}
                took[name] = deploy(settings_of(options, port, model, changes))
                time.sleep(_QUIET_S)
                after = {p.pid for p in (*service.scorers(), *service.gateways())}
                replaced[name] = before != after
                print(f"{name}: {took[name]} s, {load.tally.posts} posts so far", flush=True)
        tally = load.tally
        import ray

        ray.shutdown()
    checks = {
        "every step changed the processes": all(replaced.values()),
        "every post answered 200, whole and in order": not tally.wrong and tally.posts > 0,
        f"every reward equals that of before to {TOLERANCE:g}": tally.off == 0,
    }
    return finish(checks, {**tally.figures(), "deploy_s": took, "replaced": replaced})


if __name__ == "__main__":
    sys.exit(main())
