"""Runs the service in one process without Ray: `skyreward serve --local`."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
from collections.abc import Callable
from functools import partial

import torch
import uvicorn
from fastapi import FastAPI

from rm_core import ModelLoadError, OverloadedError
from serve.api.app import create_app, drain
from serve.api.middleware.access import AdminWithoutKey, KeyRing
from serve.api.middleware.connections import BoundedConnection, ConnectionLimits
from serve.config.settings import Settings
from serve.launch.address import format_ready_line
from serve.launch.watch import FolderWatcher
from serve.scoring.service import ScoringService
from serve.shutdown import GracefulShutdown
from serve.telemetry.logging import configure_logging
from serve.worker.backends import pin_settings
from serve.worker.lifecycle import ManagedWorker
from serve.worker.worker import Worker

_MIN_OPEN_FILES = 65_536


def run(
    settings: Settings, notify: Callable[[str], None], watcher: FolderWatcher | None = None
) -> None:
    """Serve until a signal comes, then finish the accepted requests.

    The watcher starts once the service is ready.
    """
    _check_single_process(settings)
    configure_logging(settings.log_level, settings.log_format)
    if threads := [model.cpu_threads for model in settings.models if model.cpu_threads]:
        torch.set_num_threads(max(threads))
    models, workers = [], []
    for model in map(pin_settings, settings.models):
        notify(f"loading {model.alias} and warming it up")
        workers.append(ManagedWorker(model))
        models.append((model, workers[-1]))
    service = ScoringService(models, settings)
    admin_keys = KeyRing.from_settings(settings, admin=True)
    admin_without_key: AdminWithoutKey = "none" if admin_keys else "loopback"
    if watcher is not None:
        digests = KeyRing([(watcher.admin_key, "the watcher")]).digests
        admin_keys = KeyRing.from_digests((*admin_keys.digests, *digests))
    app = create_app(service, settings, admin_keys=admin_keys, admin_without_key=admin_without_key)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(BoundedConnection, limits=_build_connection_limits()),  # type: ignore[arg-type]
        log_config=None,  # uvicorn's lines go through our log format too
        access_log=False,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
    )

    def on_started() -> None:
        notify(format_ready_line(settings))
        if watcher is not None:
            watcher.start()

    with GracefulShutdown() as shutdown:
        _Server(config, app, shutdown, on_started).run()
    is_encoding = any(model.encoder_thread.is_busy for model in service.models.values())
    if is_encoding or any(map(_is_unhealthy, workers)):
        # The interpreter would wait for its threads at exit, and one of them is busy or stuck.
        sys.stderr.flush()
        os._exit(0)


def _build_connection_limits() -> ConnectionLimits:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Shells set a low limit for the sake of programs that use `select`.
    if soft < _MIN_OPEN_FILES and soft != hard:
        limit = _MIN_OPEN_FILES if hard == resource.RLIM_INFINITY else min(_MIN_OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return ConnectionLimits()


def _check_single_process(settings: Settings) -> None:
    if replicated := [m.alias for m in settings.models if (m.max_replicas or m.num_replicas) > 1]:
        raise ModelLoadError(
            f"model {replicated[0]} is set to several replicas, but --local is a single process; "
            "leave out num_replicas (--replicas) and max_replicas, or --local"
        )
    if settings.num_gateways > 1:
        raise ModelLoadError(
            f"num_gateways is {settings.num_gateways}, but --local is a single process; leave one "
            "of them out"
        )


def _is_unhealthy(worker: Worker) -> bool:
    try:
        worker.check_health()
    except OverloadedError:
        return True
    return False


class _Server(uvicorn.Server):
    """A uvicorn server that stops at a signal, after all accepted requests are answered."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: FastAPI,
        shutdown: GracefulShutdown,
        on_started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._app = app
        self._shutdown = shutdown
        self._on_started = on_started

    def capture_signals(self) -> contextlib.nullcontext[None]:  # type: ignore[override]
        # Not uvicorn's handlers: they raise the signal again at the end, which changes the exit
        # code.
        return contextlib.nullcontext()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._shutdown.received_signal is not None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await drain(self._app)
        await super().shutdown(sockets)
