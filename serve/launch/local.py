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
from serve.api.middleware.connections import BoundedConnection, Connections
from serve.config.settings import Settings
from serve.launch.address import ready_line
from serve.scoring.service import ScoringService
from serve.telemetry.logging import configure_logging
from serve.worker.backends import LocalBackend, load_scorer, pin
from serve.worker.worker import Engine

_POLL_S = 0.1
_MANY_FILES = 65_536


def run(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until a signal comes; what was accepted is finished then.

    Raises:
        ModelLoadError: a model was refused.
    """
    _refuse_several(settings)
    configure_logging(settings.log_level, settings.log_format)
    if threads := [model.cpu_threads for model in settings.models if model.cpu_threads]:
        torch.set_num_threads(max(threads))
    models, engines = [], []
    for model in map(pin, settings.models):
        say(f"loading {model.alias} and warming it up")
        engines.append(Engine(load_scorer(model), model.stuck_after_s))
        models.append((model, LocalBackend(engines[-1])))
    service = ScoringService(models, settings)
    config = uvicorn.Config(
        create_app(service, settings),
        host=settings.host,
        port=settings.port,
        http=partial(BoundedConnection, limits=_limits()),  # type: ignore[arg-type]
        log_config=None,  # the format of the log is ours, for uvicorn's lines too
        access_log=False,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops in order, then raises the signal again; that would spoil the exit code.
        signal.signal(number, lambda _number, _frame: None)
    server = _Server(config, service, lambda: say(ready_line(settings)))
    server.run()
    encoding = any(model.encoding.is_busy for model in service.models.values())
    if server.exit_code or encoding or any(map(_is_unhealthy, engines)):
        # An interpreter that ends waits for its threads: one of them is at work, or stuck.
        sys.stderr.flush()
        os._exit(server.exit_code)


def _limits() -> Connections:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A shell allows few files for the sake of programs that use `select`.
    if files < _MANY_FILES and files != most:
        wanted = _MANY_FILES if most == resource.RLIM_INFINITY else min(_MANY_FILES, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return Connections()


def _refuse_several(settings: Settings) -> None:
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


def _is_unhealthy(engine: Engine) -> bool:
    try:
        engine.check()
    except OverloadedError:
        return True
    return False


class _Server(uvicorn.Server):
    """uvicorn, which first lets the service finish; a second signal ends it at once."""

    def __init__(
        self, config: uvicorn.Config, service: ScoringService, started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.exit_code = 0
        self._service = service
        self._tell = started

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            self.exit_code = 128 + sig
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drained = asyncio.ensure_future(self._service.drain())
        while not drained.done() and not self.force_exit:
            await asyncio.wait([drained], timeout=_POLL_S)
        drained.cancel()
        await super().shutdown(sockets)
