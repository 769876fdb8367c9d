"""Attention backends, their selection and self-check, and the hooks into transformers."""

from rm_core.attention.base import AttentionBackend, AttentionParams
from rm_core.attention.hooks import (
    PackedAttention,
    get_readouts,
    get_running_backend,
    install_packed_attention,
    run_packed_attention,
    run_readout_attention,
)
from rm_core.attention.kernel_check import AttentionHeads, select_validated_backend
from rm_core.attention.segments import Segment, build_segments, build_token_segments
from rm_core.attention.select import (
    AttentionChoice,
    AttentionTarget,
    choose_attention,
    make_backend,
)

__all__ = [
    "AttentionBackend", "AttentionChoice", "AttentionHeads", "AttentionParams", "AttentionTarget",
    "PackedAttention", "Segment", "build_segments", "build_token_segments", "choose_attention",
    "get_readouts", "get_running_backend", "install_packed_attention", "make_backend",
    "run_packed_attention", "run_readout_attention", "select_validated_backend",
]  # fmt: skip
