"""The service in one process without Ray: `skyreward serve --local`."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

import torch
import uvicorn

from rm_core import ModelLoadError, OverloadedError
from serve.api.app import create_app
from serve.api.middleware.connections import BoundedConnection, ConnectionLimits
from serve.config.settings import Settings
from serve.launch.address import format_ready_line
from serve.scoring.service import ScoringService
from serve.telemetry.logging import configure_logging
from serve.worker.backends import LocalBackend, load_scorer, pin_settings
from serve.worker.worker import Worker

_POLL_INTERVAL_S = 0.1
_MIN_OPEN_FILES = 65_536


def run(settings: Settings, notify: Callable[[str], None]) -> None:
    """Serve until a signal comes; what was accepted is finished then.

    Raises:
        ModelLoadError: a model was refused.
    """
    _check_single_process(settings)
    configure_logging(settings.log_level, settings.log_format)
    if threads := [model.cpu_threads for model in settings.models if model.cpu_threads]:
        torch.set_num_threads(max(threads))
    models, engines = [], []
    for model in map(pin_settings, settings.models):
        notify(f"loading {model.alias} and warming it up")
        engines.append(Worker(load_scorer(model), model.stuck_after_s))
        models.append((model, LocalBackend(engines[-1])))
    service = ScoringService(models, settings)
    config = uvicorn.Config(
        create_app(service, settings),
        host=settings.host,
        port=settings.port,
        http=partial(BoundedConnection, limits=_build_connection_limits()),  # type: ignore[arg-type]
        log_config=None,  # the format of the log is ours, for uvicorn's lines too
        access_log=False,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops in order, then raises the signal again; that would spoil the exit code.
        signal.signal(number, lambda _number, _frame: None)
    server = _Server(config, service, lambda: notify(format_ready_line(settings)))
    server.run()
    encoding = any(model.encoder_thread.is_busy for model in service.models.values())
    if server.exit_code or encoding or any(map(_is_unhealthy, engines)):
        # An interpreter that ends waits for its threads: one of them is at work, or stuck.
        sys.stderr.flush()
        os._exit(server.exit_code)


def _build_connection_limits() -> ConnectionLimits:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A shell allows few files for the sake of programs that use `select`.
    if files < _MIN_OPEN_FILES and files != most:
        wanted = _MIN_OPEN_FILES if most == resource.RLIM_INFINITY else min(_MIN_OPEN_FILES, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return ConnectionLimits()


def _check_single_process(settings: Settings) -> None:
    if copies := [m.alias for m in settings.models if (m.max_replicas or m.num_replicas) > 1]:
        raise ModelLoadError(
            f"{copies[0]} is to have several replicas, and --local is a single process; leave "
            "num_replicas (--replicas) and max_replicas, or --local, out"
        )
    if settings.num_gateways > 1:
        raise ModelLoadError(
            f"num_gateways is {settings.num_gateways}, and --local is a single process; leave one "
            "of them out"
        )


def _is_unhealthy(worker: Worker) -> bool:
    try:
        worker.check_health()
    except OverloadedError:
        return True
    return False


class _Server(uvicorn.Server):
    """uvicorn, which first lets the service finish; a second signal ends it at once."""

    def __init__(
        self, config: uvicorn.Config, service: ScoringService, on_started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.exit_code = 0
        self._service = service
        self._on_started = on_started

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            self.exit_code = 128 + sig
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drained = asyncio.ensure_future(self._service.drain())
        while not drained.done() and not self.force_exit:
            await asyncio.wait([drained], timeout=_POLL_INTERVAL_S)
        drained.cancel()
        await super().shutdown(sockets)
