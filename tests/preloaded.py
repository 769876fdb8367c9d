"""A service in a process that is forked from one in which everything is imported already.

A new interpreter needs about 7 s of CPU time for its imports. Tests of the start and of the command
line as a program start one; all others need no more than a service.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from command_line import SKYREWARD

from serve.cli import demo
from serve.cli.main import main

_CONTEXT = multiprocessing.get_context("forkserver")
# None of these starts a thread, which a forked process would lack.
_CONTEXT.set_forkserver_preload(
    [
        "serve.cli.main",
        "serve.launch.local",
        "transformers.conversion_mapping",
        "transformers.masking_utils",
        "transformers.modeling_layers",
        "transformers.models.gemma2.modeling_gemma2",
        "transformers.models.llama.modeling_llama",
        "transformers.models.qwen3.modeling_qwen3",
    ]
)


def run_service(*options: str) -> contextlib.AbstractContextManager[str]:
    """Run a service without Ray in a forked process; see `serve.cli.demo.run_service`."""
    return demo.run_service("--local", *options, start=PreloadedProcess)


class PreloadedProcess:
    """What `run_service` uses of `subprocess.Popen`, for a command of `skyreward`."""

    def __init__(self, command: Sequence[str], **_: Any) -> None:
        arguments = command[len(SKYREWARD) :]
        self._process = _CONTEXT.Process(target=_run, args=(arguments, dict(os.environ)))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("skyreward", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self._process.pid or 0, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    main(arguments)
