"""Whether decoder layers are compiled, and options of `torch.compile` shared with kernels."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from rm_core.config import Compile

logger = logging.getLogger(__name__)

# By default, torch keeps 8 compiled variants of a function for the whole process, and each further
# model, dtype or device needs variants. A kernel compiled with `fullgraph` fails beyond the limit.
RECOMPILE_LIMIT = 64


@dataclass(frozen=True, slots=True)
class CompilationChoice:
    """Whether the decoder layers are compiled, and the reason."""

    is_compiled: bool
    reason: str


def choose_compilation(
    requested: Compile, device: torch.device, *, num_devices: int, deterministic: bool
) -> CompilationChoice:
    """Choose whether to compile the decoder layers.

    `requested` is the setting `compile`; a boolean overrides the choice.
    """
    if requested != "auto":
        return CompilationChoice(requested, "requested by the setting `compile`")
    for applies, reason in (
        (device.type != "cuda", "compiled layers were slower on CPUs"),
        (num_devices > 1, "layers on several devices are not compiled"),
        (deterministic, "kernels are tuned in each process, and `deterministic` must not vary"),
    ):
        if applies:
            return CompilationChoice(False, reason)
    failure = find_compiler_failure(device)
    if failure:
        reason = f"the compiler failed its check on this device: {failure}"
        logger.warning("compile: %s; layers run uncompiled, which is slower", reason)
        return CompilationChoice(False, reason)
    return CompilationChoice(True, "on CUDA a compiled layer has fewer kernels and less traffic")


def find_compiler_failure(device: torch.device) -> str | None:
    """Compile a small function for a device and run it; return why that fails, or None.

    The compiler needs Triton, a C compiler with Python's headers, and a writable temporary folder.
    """
    values = torch.arange(8.0, device=device)
    try:
        compiled = torch.compile(lambda rows: rows.square() + 1, dynamic=True)
        difference = float((compiled(values) - values.square() - 1).abs().max())
    except Exception as error:  # compilers raise arbitrary classes
        cause = getattr(error, "inner_exception", None) or error
        return f"{type(cause).__name__}: {cause}".strip().splitlines()[0]
    return None if difference < 1e-3 else f"its result is off by {difference:.3g}"


def recompile_options() -> dict[str, Any]:
    """Return options for `torch.compile` that raise the limit of compiled variants.

    For releases without such an option, raise the limit of the process. Newer releases keep that
    limit per thread, and batches do not run on the thread that loads the model.
    """
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": RECOMPILE_LIMIT}
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    return {}


@contextlib.contextmanager
def compile_for_all_sizes() -> Iterator[None]:
    """Make compiled code independent of which sizes are equal.

    By default, torch assumes that sizes that are equal in the first call (tokens and heads, or
    queries and keys) always are, and recompiles for rows where they differ.
    """
    from torch.fx.experimental import _config

    config: Any = _config
    with config.patch(use_duck_shape=False):
        yield
