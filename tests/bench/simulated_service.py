"""`skyreward serve --local` on a simulated device: what `gateway.py` and `service_cpu.py` start.

Everything is the service's own but the worker. `/simulated` tells what the service and the device
have done so far; with `?profile=true` it begins to watch the stages of requests, and the next call
without it ends that and tells them too. Which tree the service is of decides `PYTHONPATH`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from fastapi import FastAPI
from simulated import SimulatedBackend, SimulatedDevice
from stages import StageSampler

from serve.capacity.devices import DEVICES
from serve.capacity.shape import find_model_shape
from serve.config.model_settings import ModelSettings
from serve.config.settings import Settings
from serve.launch import local


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a tokenizer and a config")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--device", choices=list(DEVICES), help="by default, one of no model")
    parser.add_argument("--model", help="whose sizes decide the time of the device")
    parser.add_argument("--mfu", type=float)
    options = parser.parse_args()
    make_device = None
    if options.device:
        make_device = partial(
            SimulatedDevice,
            find_model_shape(options.model),
            DEVICES[options.device],
            efficiency=options.mfu,
        )
    backends: list[SimulatedBackend] = []

    def make_backend(
        settings: ModelSettings, _stuck_after_s: float | None = None
    ) -> SimulatedBackend:
        backends.append(SimulatedBackend(settings, make_device))
        return backends[-1]

    create_app = local.create_app

    def create_app_with_usage(*args: Any, **kwargs: Any) -> FastAPI:
        app = create_app(*args, **kwargs)
        app.add_api_route("/simulated", Reporter(backends[0]).report)
        return app

    model = {"name": str(options.checkpoint), "alias": "bench", "cache_bytes": 0}
    settings = Settings.load(
        models=[model], host="127.0.0.1", port=options.port, log_level="WARNING"
    )
    stand_ins: dict[str, Any] = {
        "ManagedWorker": make_backend,
        "create_app": create_app_with_usage,
    }
    if not hasattr(local, "ManagedWorker"):  # of an older source tree
        del stand_ins["ManagedWorker"]
        stand_ins |= {"load_scorer": lambda settings: settings, "Worker": make_backend}
    if hasattr(local, "LocalBackend"):  # of an older source tree
        stand_ins["LocalBackend"] = lambda backend: backend
    with mock.patch.multiple(local, **stand_ins):
        local.run(settings, partial(print, file=sys.stderr))


class Reporter:
    """What `/simulated` answers."""

    def __init__(self, backend: SimulatedBackend) -> None:
        self._backend = backend
        self._sampler: StageSampler | None = None

    async def report(self, profile: bool = False) -> dict[str, Any]:
        stages: dict[str, float] = {}
        if self._sampler is not None:
            stages, self._sampler = self._sampler.stop(), None
        if profile:
            self._sampler = StageSampler()
        usage = dataclasses.asdict(self._backend.usage)
        times = {"cpu_s": time.process_time(), "starved_s": _read_starved_s()}
        return {**usage, **times, "stages": stages}


def _read_starved_s() -> float:
    """Seconds that threads of this process were ready to run and had no core."""
    files = Path("/proc/self/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[1]) for file in files) / 1e9


if __name__ == "__main__":
    main()
