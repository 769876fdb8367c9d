"""Commands in processes that are forked from one in which everything is imported already.

A new interpreter needs about 5 s of CPU time for its imports. Tests of the start and of the command
line as a program start one; all others need no more than a service, or a job that gets signals.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import small_chunks
from command_line import SKYREWARD

from serve.cli.demo import run_service as run_in_new_process
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

    def fork(command: Sequence[str], **_: Any) -> PreloadedProcess:
        return PreloadedProcess(_run_command, command[len(SKYREWARD) :])

    return run_in_new_process("--local", *options, start=fork)  # type: ignore[arg-type]


def start(arguments: Sequence[object], errors: Path, chunk_rows: int = 0) -> PreloadedProcess:
    """Start a command in a forked process.

    Args:
        arguments: of `skyreward`.
        errors: file for its standard error.
        chunk_rows: rows of a chunk of `skyreward score`; 0 for the default.
    """
    errors.touch()
    words = [str(argument) for argument in arguments]
    return PreloadedProcess(_run_with_log, words, errors, chunk_rows)


class PreloadedProcess:
    """What tests use of `subprocess.Popen`, for a function in a forked process."""

    def __init__(self, function: Callable[..., None], *arguments: object) -> None:
        self._process = _CONTEXT.Process(target=_run, args=(function, dict(os.environ), *arguments))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

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
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(function: Callable[..., None], environment: Mapping[str, str], *arguments: object) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments)


def _run_command(arguments: Sequence[str]) -> None:
    main(arguments)


def _run_with_log(arguments: Sequence[str], errors: Path, chunk_rows: int) -> None:
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
    if chunk_rows:
        small_chunks.set_chunk_rows(chunk_rows)
    main(arguments)
