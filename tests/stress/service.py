"""The service that a script puts under load: started for it, or one that runs already.

A service of our own has the settings that the script needs, in a file of its own, and a port of
its own. For one that runs already, `--url` tells where, and `--pid` the id of `skyreward serve`,
without which its processes cannot be watched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from serve.cli.demo import run_service

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from processes import (
    Process,
    cpu_s,
    kill,
    memory_of,
    processes_of,
    replicas_of,
    service_on,
    thread_cpu_s,
)

__all__ = [
    "Process",
    "Service",
    "cpu_s",
    "kill",
    "memory_of",
    "parser_of",
    "processes_of",
    "replicas_of",
    "service_of",
    "thread_cpu_s",
]

_SETTLE_S = 120.0


@dataclass(frozen=True, slots=True)
class Service:
    """A running service.

    Attributes:
        url: its address.
        pid: of its first process; None if that is not known.
        ray: False if it is a single process.
    """

    url: str
    pid: int | None
    ray: bool

    def processes(self) -> list[Process]:
        """All of them."""
        return processes_of(self._known())

    def scorers(self) -> list[Process]:
        """Those with a model: the replicas on Ray, else the only one."""
        return replicas_of(self._known(), "Scorer") if self.ray else self._first()

    def gateways(self) -> list[Process]:
        """Those that speak HTTP with clients."""
        return replicas_of(self._known(), "Gateway") if self.ray else self._first()

    def cpu_s(self) -> float:
        """CPU time of all of them so far."""
        return sum(cpu_s(process.pid) for process in self.processes())

    def idle_cpu(self, seconds: float) -> float:
        """CPU seconds a second when nothing is posted, over so many seconds."""
        before = self.cpu_s()
        time.sleep(seconds)
        return (self.cpu_s() - before) / seconds

    def get(self, route: str) -> httpx.Response:
        """One answer to a GET."""
        return httpx.get(self.url + route, timeout=60, trust_env=False)

    def metric(self, name: str) -> float | None:
        """The sum of a metric over its labels; None if there is none of that name."""
        answer = self.get("/metrics")
        if not answer.is_success:
            return None
        lines = [line.rsplit(" ", 1) for line in answer.text.splitlines() if line[:1] != "#"]
        values = [float(line[1]) for line in lines if line[0].split("{")[0] == name]
        return sum(values) if values else None

    def settle(self, num_scorers: int, num_gateways: int = 1) -> bool:
        """Wait until so many replicas are there and it says that it is ready; whether that came."""
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline:
            whole = len(self.scorers()) >= num_scorers and len(self.gateways()) >= num_gateways
            with contextlib.suppress(httpx.HTTPError):
                if whole and self.get("/ready").is_success:
                    return True
            time.sleep(0.5)
        return False

    def _first(self) -> list[Process]:
        return [process for process in self.processes() if process.pid == self.pid]

    def _known(self) -> int:
        if self.pid is None:
            raise SystemExit(
                "this looks at processes: give --pid of the `skyreward serve` at --url"
            )
        return self.pid


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Options that every script has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a running service; by default one is started")
    parser.add_argument("--pid", type=int, help="of the `skyreward serve` at --url")
    parser.add_argument("--model", default="demo", help="what the started service serves")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    return parser


@contextlib.contextmanager
def service_of(
    options: argparse.Namespace,
    *flags: str,
    model: dict[str, Any] | None = None,
    output: IO[bytes] | None = None,
    **settings: Any,
) -> Iterator[Service]:
    """The service that the options name, or one that is started.

    Args:
        options: of `parser_of`.
        flags: more for the command line of `skyreward serve`.
        model: settings of the model.
        output: where the service's log goes; by default to standard error.
        settings: of the service.
    """
    local = "--local" in flags
    if options.url:
        yield Service(options.url.rstrip("/"), options.pid, not local)
        return
    os.environ.setdefault("SKYREWARD_LOG_LEVEL", "WARNING")
    chosen = {"models": [{"name": options.model, "alias": "demo", **(model or {})}], **settings}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(json.dumps(chosen))  # which is YAML as well
        file.flush()
        log = output or sys.stderr.buffer
        with run_service("--config", file.name, *flags, output=log) as url:
            port = httpx.URL(url).port
            assert port is not None
            yield Service(url, service_on(port, os.getpid()), not local)
