"""Chooses the attention backend by family, device, dtype and installed packages.

The choice includes its reason, which `/info` and `skyreward verify` show. A backend that would drop
Gemma-2's attention softcap is refused even if it is requested: the rewards would be plausible but
wrong.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from packaging.version import Version

from rm_core.attention.base import AttentionBackend
from rm_core.config import Attention
from rm_core.errors import ModelLoadError

# The build of flash-attn imports torch, which pip hides from isolated builds.
INSTALL_FLASH_ATTN = "pip install --no-build-isolation flash-attn, which needs nvcc"
INSTALL_FLASH_ATTN_4 = "pip install --pre flash-attn-4"


@dataclass(frozen=True, slots=True)
class AttentionTarget:
    """Properties of a model and its device on which the choice depends."""

    family: str  # `model_type` of the decoder
    device_type: str  # `cuda` or `cpu`
    dtype: str  # resolved name of the dtype, such as `bfloat16`
    has_softcap: bool = False  # whether attention scores are soft-capped
    has_window: bool = False  # whether any layer has a sliding window
    deterministic: bool = False  # whether a reward must not depend on its batch, to the last bit
    # Whether the CUDA device is too old for FlashAttention-2 (compute capability below 8.0).
    is_old_gpu: bool = False
    # Whether the CUDA device has kernels in FlashAttention-4 that are faster than those of
    # FlashAttention-2 (compute capability 9.0 and newer).
    is_new_gpu: bool = False

    @property
    def has_flash_kernels(self) -> bool:
        """Whether FlashAttention-2 kernels can run: CUDA, half precision, a GPU not too old."""
        return self.device_type == "cuda" and self.dtype != "float32" and not self.is_old_gpu


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """Name of a backend, and the reason for the choice."""

    name: str
    reason: str  # why the backend was chosen, in words
    # Names of the backends to try in turn if this backend fails its self-check; eager is the last
    # fallback and not listed.
    fallbacks: tuple[str, ...] = ()


def is_flash_attn_installed() -> bool:
    """Return whether a flash-attn with softcap is installed, not whether it works on this device.

    Releases before 2.6 have no softcap and would silently ignore it; they count as not installed.
    """
    try:
        version = importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return False
    return Version(version) >= Version("2.6")


def is_flash_attn_4_installed() -> bool:
    """Return whether FlashAttention-4 is installed, not whether it works on this device."""
    try:
        importlib.metadata.version("flash-attn-4")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def choose_attention(
    target: AttentionTarget,
    requested: Attention = "auto",
    *,
    has_flash_attn: bool | None = None,
    has_flash_attn_4: bool | None = None,
) -> AttentionChoice:
    """Choose the attention backend.

    `requested` is the setting `attention`; a name overrides the choice. Whether the kernels are
    installed is looked up if None.

    Raises:
        ModelLoadError: the requested backend would score wrongly or cannot run.
    """
    if has_flash_attn is None:
        has_flash_attn = is_flash_attn_installed()
    if has_flash_attn_4 is None:
        has_flash_attn_4 = is_flash_attn_4_installed()
    if requested != "auto":
        refusal = _refusal_reason(target, requested, has_flash_attn, has_flash_attn_4)
        if refusal:
            raise ModelLoadError(f"attention {requested!r} {refusal}")
        return AttentionChoice(requested, "requested by the setting `attention`")
    if target.device_type == "cpu":
        return _choose_on_cpu(target)
    if not target.has_flash_kernels:
        too_old = "the GPU is older than FlashAttention needs"
        no_float32 = "FlashAttention has no float32 kernels"
        return AttentionChoice("eager", too_old if target.is_old_gpu else no_float32)
    if target.deterministic:
        if target.has_softcap:
            return AttentionChoice("eager", "batch-invariant, and keeps Gemma-2's softcap")
        return AttentionChoice("varlen", "batch-invariant without splits of the keys")
    return _choose_kernel(target, has_flash_attn, has_flash_attn_4)


def _choose_kernel(
    target: AttentionTarget, has_flash_attn: bool, has_flash_attn_4: bool
) -> AttentionChoice:
    """Return the fastest of the kernels for half precision on CUDA, the others as fallbacks."""
    missing = f"flash-attn is not installed ({INSTALL_FLASH_ATTN})"
    if target.is_new_gpu:
        missing += f", nor flash-attn-4, which is faster on this GPU ({INSTALL_FLASH_ATTN_4})"
    candidates = (
        (
            has_flash_attn_4 and target.is_new_gpu,
            "flash_attention_4",
            "flash-attn-4 is installed and the GPU is new enough for its kernels",
        ),
        (
            has_flash_attn,
            "flash_attention_2",
            "flash-attn is installed and the model runs on CUDA in half precision",
        ),
        (not target.has_softcap, "varlen", f"{missing}; torch has the kernel without the softcap"),
        (True, "flex", missing),
    )
    (name, reason), *others = [(name, reason) for usable, name, reason in candidates if usable]
    capped = "; keeps Gemma-2's attention softcap" if target.has_softcap else ""
    return AttentionChoice(name, reason + capped, tuple(name for name, _ in others))


def _choose_on_cpu(target: AttentionTarget) -> AttentionChoice:
    for applies, reason in (
        (target.has_softcap, "keeps Gemma-2's attention softcap; SDPA has none"),
        (target.has_window, "keeps the sliding window; the CPU's SDPA kernel has none"),
        (
            target.deterministic,
            "batch-invariant: the shape of every product depends only on the position",
        ),
        (
            # Measured on random checkpoints: 0.05 to 0.2 from eager at rewards of 1 to 9.
            target.dtype != "float32",
            "SDPA on the CPU differs from eager by several bfloat16 steps in half precision",
        ),
    ):
        if applies:
            return AttentionChoice("eager", f"the model runs on the CPU; {reason}")
    return AttentionChoice("sdpa", "the model runs on the CPU; its kernel needs no mask")


def _refusal_reason(
    target: AttentionTarget, requested: str, has_flash_attn: bool, has_flash_attn_4: bool
) -> str | None:
    """Return why a backend cannot be used, or None."""
    on_cuda = target.device_type == "cuda"
    if requested in ("sdpa", "varlen") and target.has_softcap:
        return (
            "drops Gemma-2's attention softcap and would score wrongly; use 'flash_attention_2' "
            "or 'flex' (CUDA), 'eager' or 'auto'"
        )
    if requested == "sdpa" and on_cuda:
        return "is the backend for CPUs; on CUDA use 'auto', which chooses a CUDA kernel"
    if requested == "sdpa" and target.has_window:
        return "does not support a sliding window on CPUs; use 'eager' or 'auto'"
    if requested not in ("eager", "sdpa") and not on_cuda:
        return "needs CUDA; use 'auto' on a CPU"
    if requested == "flash_attention_2" and not has_flash_attn:
        return f"needs flash-attn: {INSTALL_FLASH_ATTN}; or use 'auto'"
    if requested == "flash_attention_4" and not has_flash_attn_4:
        return f"needs flash-attn-4: {INSTALL_FLASH_ATTN_4}; or use 'auto'"
    if requested == "flash_attention_4" and not target.is_new_gpu:
        return "needs a GPU of compute capability 9.0 or newer; use 'flash_attention_2' or 'auto'"
    if requested not in ("eager", "sdpa", "flex") and not target.has_flash_kernels:
        if target.is_old_gpu:
            return "needs a GPU of compute capability 8.0 or newer; use 'auto' or 'eager'"
        return "has no float32 kernels; use dtype 'bfloat16' or attention 'auto'"
    if target.deterministic and requested not in ("eager", "varlen"):
        return "is not batch-invariant; use 'auto' or 'eager', or turn `deterministic` off"
    return None


def make_backend(name: str, deterministic: bool = False) -> AttentionBackend:
    """Create a backend by name; its module and dependencies are imported only now."""
    match name:
        case "eager":
            from rm_core.attention.eager import EagerBackend

            return EagerBackend(aligned=deterministic)
        case "sdpa":
            from rm_core.attention.cpu_kernel import make_cpu_backend

            return make_cpu_backend()
        case "varlen":
            from rm_core.attention.torch_varlen import TorchVarlenBackend

            return TorchVarlenBackend(deterministic)
        case "flex":
            from rm_core.attention.flex import FlexBackend

            return FlexBackend()
        case "flash_attention_2":
            from rm_core.attention.flash import FlashAttnBackend

            return FlashAttnBackend()
        case "flash_attention_4":
            from rm_core.attention.flash import FlashAttn4Backend

            return FlashAttn4Backend()
    raise AssertionError(f"unknown backend {name!r}")
