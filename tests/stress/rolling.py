"""Replicas are added, taken away and replaced by others under load: is any post lost?

What is measured: a Ray node behind the ingress that `skyreward serve` would choose, and clients
that post without end and never send anything twice. Meanwhile the command `serve deploy` gives it
one configuration after another, as an operator does: more scorers, fewer, another model setting,
for which Serve replaces every scorer and every gateway, and a limit that gateways take over in
place. Every post has to be answered 200, whole, in order and with the rewards of before. The score
cache is off. The last line is one JSON object.

    python tests/stress/rolling.py [--clients 6] [--ingress haproxy|proxy]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from chaos import TOLERANCE, Tally, posts_of, undisturbed
from load import Post, closed_loop
from service import Service, parser_of
from stress_result import finish
from workload_mix import Conversation, Writer

from serve.config.settings import Settings
from serve.deployments.cluster import enable_token_auth
from serve.launch import ingress

_QUIET_S = 6.0
_DEPLOYED_S = 300.0
_PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Step:
    """One configuration.

    Attributes:
        name: what is new.
        scorers: how many.
        model: settings of the model.
        limits: settings that gateways take over.
        replaces: whether processes come or go.
    """

    name: str
    scorers: int
    model: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    replaces: bool = True


_SMALLER = {"max_batch_tokens": 3_000}
FIRST = Step("the first", 2)
STEPS = (
    Step("more scorers", 3),
    Step("fewer scorers", 1),
    Step("a model setting", 2, _SMALLER),
    Step("a limit", 2, _SMALLER, {"max_messages": 99}, replaces=False),
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


class Node:
    """A Ray node with a dashboard, which `serve deploy` talks to.

    Args:
        options: of the command line.
        folder: private, with a short path.
    """

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        self._options = options
        self._file = Path(folder) / "serve.yaml"
        self.port, dashboard = find_free_port(), find_free_port()
        settings = Settings.load(port=self.port, ingress=options.ingress)
        self._chosen = ingress.choose_ingress(settings, own_cluster=True)
        os.environ.update(ingress.RAY_DEFAULTS)
        os.environ.update(ingress.build_environment(self._chosen, settings, Path(folder)))
        enable_token_auth()
        self._dashboard = f"http://127.0.0.1:{dashboard}"
        command = [str(_PROGRAMS / "ray"), "start", "--head", "--block", "--port=0"]
        command += ["--node-ip-address=127.0.0.1", "--include-dashboard=true"]
        command += [f"--dashboard-port={dashboard}", f"--temp-dir={folder}/ray"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        self.service = Service(f"http://127.0.0.1:{self.port}", self._process.pid, ray=True)

    def deploy(self, step: Step) -> float:
        """As an operator does; seconds until all of it runs."""
        started = time.perf_counter()
        self._file.write_text(json.dumps(self._configuration(step)))  # which is YAML as well
        command = [str(_PROGRAMS / "serve"), "deploy", "-a", self._dashboard, str(self._file)]
        while subprocess.run(command, capture_output=True, check=False).returncode:
            if time.perf_counter() - started > _DEPLOYED_S:
                raise SystemExit("`serve deploy` does not reach the node")
        while not self._runs(step):
            if time.perf_counter() - started > _DEPLOYED_S:
                raise SystemExit(f"{step.name}: not deployed after {_DEPLOYED_S:.0f} s")
            time.sleep(0.5)
        return round(time.perf_counter() - started, 1)

    def stop(self) -> None:
        """End it with all that it has started."""
        self._process.terminate()
        self._process.wait(60)

    def _configuration(self, step: Step) -> dict[str, Any]:
        host = ingress.INTERNAL_HOST if self._chosen == "haproxy" else "127.0.0.1"
        model = {"name": self._options.model, "alias": "demo", "cache_bytes": 0, **step.model}
        application = {
            "name": "skyreward",
            "route_prefix": "/",
            "import_path": "serve.app:build",
            "args": {"models": [model], "num_gateways": 2, "log_level": "WARNING"},
            "deployments": [
                {"name": "Scorer-demo", "num_replicas": step.scorers},
                {"name": "Gateway", "user_config": step.limits},
            ],
        }
        http = {"host": host, "port": self.port}
        return {"http_options": http, "applications": [application]}

    def _runs(self, step: Step) -> bool:
        """Whether Serve says so, the processes are there, and gateways have their settings."""
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        details = ServeSubmissionClient(self._dashboard).get_serve_details()
        application = details["applications"].get("skyreward", {})
        if application.get("status") != "RUNNING":
            return False
        states = {d["status"] for d in application["deployments"].values()}
        if states != {"HEALTHY"} or len(self.service.scorers()) != step.scorers:
            return False
        with contextlib.suppress(httpx.HTTPError):
            settings = self.service.get("/info").json()["settings"]
            wanted = [(settings, step.limits), (settings["models"][0], step.model)]
            return all(had[key] == value for had, new in wanted for key, value in new.items())
        return False


def find_free_port() -> int:
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
    took: dict[str, float] = {}
    as_meant: dict[str, bool] = {}
    with tempfile.TemporaryDirectory(prefix="sky-", dir="/tmp", ignore_cleanup_errors=True) as made:
        node = Node(options, made)
        service = node.service
        try:
            took[FIRST.name] = node.deploy(FIRST)
            if not service.settle(2, 2):
                raise SystemExit("the service did not become ready")
            with Load(service, Writer(options.seed).pool(), options) as load:
                time.sleep(_QUIET_S)
                for step in STEPS:
                    before = {p.pid for p in (*service.scorers(), *service.gateways())}
                    took[step.name] = node.deploy(step)
                    time.sleep(_QUIET_S)
                    after = {p.pid for p in (*service.scorers(), *service.gateways())}
                    as_meant[step.name] = (before != after) == step.replaces
                    print(f"{step.name}: {took[step.name]} s, {load.tally.posts} posts so far")
        finally:
            node.stop()
    tally = load.tally
    checks = {
        "every step replaced what it had to, and nothing else": all(as_meant.values()),
        "every post answered 200, whole and in order": not tally.wrong and tally.posts > 0,
        f"every reward equals that of before to {TOLERANCE:g}": tally.off == 0,
    }
    return finish(checks, {**tally.figures(), "deploy_s": took, "as_meant": as_meant})


if __name__ == "__main__":
    sys.exit(main())
