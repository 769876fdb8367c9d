"""Kernels for CPUs in C++, which g++ compiles at load for the vectors of the machine.

Compiling takes a second of CPU in each process. Without g++, torch's operations do the same more
slowly.
"""

from rm_core.cpu_kernels.build import FLAGS, KernelBuildError, compile_kernels

__all__ = ["FLAGS", "KernelBuildError", "compile_kernels"]
