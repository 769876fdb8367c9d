"""Distinguishes errors of the engine in a forward pass from errors of a conversation.

After an error of the engine the process cannot be trusted to score anything: the device's context
is lost, or the compiler of a kernel failed and will fail again for the next batch of that kind.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch

from rm_core.errors import CompilerFailedError, DeviceFailedError

logger = logging.getLogger(__name__)

# What libraries say that run out of the device's memory, but raise other classes than torch does:
# cuBLAS for its workspace, CUDA when it loads a module, Triton when it loads a kernel.
_NO_MEMORY = ("out of memory", "alloc_failed")
# Packages whose exception classes mean that code could not be compiled. They are given by name,
# because importing them takes seconds; a package that raises an exception is already imported.
_COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")


@contextlib.contextmanager
def convert_device_errors() -> Iterator[None]:
    """Convert failures of the device and of the compiler into errors of the engine.

    Raises:
        DeviceFailedError: the device reported an error from which it does not recover.
        CompilerFailedError: a kernel could not be compiled.
        torch.OutOfMemoryError: torch, another library or the compiler ran out of the device's
            memory; a smaller batch may succeed.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except torch.AcceleratorError as error:
        if is_out_of_memory(error):
            raise torch.OutOfMemoryError(_get_first_line(error)) from error
        raise DeviceFailedError(
            f"the device failed ({_get_first_line(error)}); the model must be loaded again in a "
            "new process"
        ) from error
    except Exception as error:
        # The compiler runs kernels to time them.
        cause = getattr(error, "inner_exception", None) or error.__cause__
        if is_out_of_memory(error) or is_out_of_memory(cause):
            raise torch.OutOfMemoryError(_get_first_line(error)) from error
        if not is_compiler_error(error):
            raise
        logger.exception(
            "the compiler failed: a new process starts with no compiled kernels; if it fails "
            "again, set `attention` to 'eager' or `compile` to false, and check that a C compiler "
            "is installed and that the temporary folder has free space"
        )
        raise CompilerFailedError(
            f"the compiler of a kernel failed ({type(error).__name__}: {_get_first_line(error)}), "
            "which is not caused by a conversation; the model must be loaded again in a new "
            "process, and the log says what to do if that fails too"
        ) from error


def is_out_of_memory(error: object) -> bool:
    """Return whether an exception means that the device has too little memory, by any library."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error).lower() for text in _NO_MEMORY
    )


def is_compiler_error(error: BaseException) -> bool:
    """Return whether an exception was raised by `torch.compile` or the compilers it uses."""
    return any(
        cls.__module__ == package or cls.__module__.startswith(f"{package}.")
        for cls in type(error).__mro__
        for package in _COMPILERS
    )


def _get_first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no reason given"
