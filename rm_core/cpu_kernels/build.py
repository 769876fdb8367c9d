"""Compiles the kernels and loads them with ctypes."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

# The kernels use the OpenMP of torch, which has to be in the process before them: two of them would
# have twice as many threads.
import torch  # noqa: F401

_FOLDER = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_TIMEOUT_S = 120


class KernelBuildError(Exception):
    """The kernels cannot be compiled or loaded on this machine; the message says why."""


@functools.cache
def compile_kernels(flags: tuple[str, ...] = FLAGS) -> ctypes.CDLL:
    """Compile and load the kernels, once in a process.

    Raises:
        KernelBuildError: g++ is missing or failed, or the library cannot be loaded.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="skyreward-") as folder:
            library = Path(folder) / "cpu_kernels.so"
            sources = map(str, sorted(_FOLDER.glob("*.cpp")))
            command = ["g++", *flags, *sources, "-o", str(library)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
            kernels = ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or ""
        output = output.decode(errors="replace") if isinstance(output, bytes) else output
        lines = output.strip().splitlines() or [str(error)]
        cause = next((line for line in lines if "error" in line), lines[0])
        raise KernelBuildError(f"the kernels for CPUs are not compiled: {cause}") from error
    kernels.skyreward_get_workspace_size.restype = ctypes.c_int64
    return kernels
