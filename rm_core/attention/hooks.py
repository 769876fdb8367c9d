"""Runs packed rows in transformers' own decoder, through its public hook for attention.

transformers calls the attention function registered here from every layer of a decoder.
The function calls the backend of the batch that runs in the current context. No mask function is
registered, so that transformers builds no mask and does not look for one in the positions, for
which it would wait for the device. No model code of transformers is copied.

To the compiler of the layers, attention is one operator whose contents it does not see, so that a
compiled layer is one graph. The plan of a batch is therefore not an argument.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from rm_core.attention.base import AttentionBackend, AttentionParams
from rm_core.errors import ModelLoadError
from rm_core.prefix_cache import CachedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "skyreward_packed"


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """Input of one batch's attention on a device, in addition to queries, keys and values."""

    backend: AttentionBackend
    plan: Any  # the backend's plan for these queries
    num_queries: int  # number of planned queries; later rows are padding and get zeros
    num_keys: int  # number of the row's keys; later keys are padding
    # The batch's part of the prefix cache, whose keys come before those of the row; None without a
    # cache.
    cached: CachedBatch | None = None
    # Keys and values `[1, num_key_value_heads, num_keys, head_dim]` that replace the layer's; None
    # if the queries are the complete row.
    keys: tuple[torch.Tensor, torch.Tensor] | None = None
    # Int64 `[num_readouts]`, indices in the row for which the last layer runs; None for all.
    readouts: torch.Tensor | None = None
    readout_plan: Any = None  # the backend's plan for the queries at `readouts`


@dataclass(slots=True)
class _RunningBatch:
    """A batch on its way through the decoder."""

    stages: Sequence[tuple[torch.device, PackedAttention]]  # attention on each device
    # Index of the layer that attends next. Counted, because a number that differs from layer to
    # layer would make the compiler compile each layer separately.
    next_layer: int = 0

    def get_attention(self, device: torch.device) -> PackedAttention:
        """Return the attention on a layer's device."""
        if len(self.stages) == 1:  # whose device may have no index, unlike that of a tensor
            return self.stages[0][1]
        return next(packed for stage, packed in self.stages if stage == device)


_running: ContextVar[_RunningBatch] = ContextVar("skyreward_running_batch")


@contextlib.contextmanager
def run_packed_attention(stages: Sequence[tuple[torch.device, PackedAttention]]) -> Iterator[None]:
    """Let the decoder that is called in this context attend within the segments of a batch."""
    token = _running.set(_RunningBatch(stages))
    try:
        yield
    finally:
        _running.reset(token)


@contextlib.contextmanager
def run_readout_attention(
    device: torch.device, keys: tuple[torch.Tensor, torch.Tensor]
) -> Iterator[None]:
    """Let the last layer, called in this context, attend from the readout tokens only."""
    running = _running.get()
    packed = running.get_attention(device)
    assert packed.readouts is not None
    readouts = replace(
        packed, plan=packed.readout_plan, num_queries=len(packed.readouts), keys=keys
    )
    token = _running.set(_RunningBatch(((device, readouts),), running.next_layer))
    try:
        yield
    finally:
        _running.reset(token)


def get_readouts(device: torch.device) -> torch.Tensor | None:
    """Return the readout tokens for which the last layer runs; None if it runs for all tokens."""
    running = _running.get(None)
    return None if running is None else running.get_attention(device).readouts


def get_running_backend(device: torch.device) -> AttentionBackend | None:
    """Return the backend of the packed batch that runs in this context; None without one."""
    running = _running.get(None)
    return None if running is None else running.get_attention(device).backend


def install_packed_attention(model: PreTrainedModel) -> None:
    """Make a model's layers attend to the segments of the batch of `run_packed_attention`."""
    from transformers import AttentionInterface

    _register_operator()
    AttentionInterface.register(NAME, _attend_in_layer)
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise ModelLoadError(
            f"{type(model).__name__} of transformers does not attend through the attention "
            "interface of transformers, so packed rows cannot be computed; this architecture "
            "cannot be served"
        )


def _attend_in_layer(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Map `[1, heads, tokens, head_dim]` to `[1, tokens, heads, head_dim]`.

    A layer that needs attention of another kind is refused when a tiny row is run at load.
    """
    if s_aux is not None or position_bias is not None or is_causal is False:
        raise ModelLoadError(_explain_unsupported(module, s_aux, position_bias))
    if scaling is None:  # as in transformers
        scaling = query.shape[-1] ** -0.5
    # The operator costs time that only compiled layers have to spend.
    attend = torch.ops.skyreward.attend if torch.compiler.is_compiling() else _attend
    return attend(query, key, value, scaling, softcap, sliding_window), None


def _explain_unsupported(module: Any, s_aux: object, position_bias: object) -> str:
    if s_aux is not None:
        feature = "attention sinks (s_aux)"
    else:
        feature = "a bias of positions" if position_bias is not None else "no causal mask"
    return (
        f"{type(module).__name__} of transformers has {feature}, which the packed attention "
        "backends do not compute; the rewards would be wrong, so this architecture cannot be served"
    )


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """Map `[1, heads, tokens, head_dim]` to `[1, tokens, heads, head_dim]`, contiguous."""
    running = _running.get()
    packed = running.get_attention(query.device)
    if packed.keys is not None:
        key, value = packed.keys
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    num_queries, num_keys = packed.num_queries, packed.num_keys
    keys, values = keys[:num_keys], values[:num_keys]
    if packed.cached is not None:
        keys, values = packed.cached.extend(running.next_layer, keys, values)
    running.next_layer += 1
    params = AttentionParams(scaling, softcap, window)
    out = packed.backend.attend(packed.plan, queries[:num_queries], keys, values, params)
    if num_queries < len(queries):
        out = torch.nn.functional.pad(out, (0, 0, 0, 0, 0, len(queries) - num_queries))
    return out.unsqueeze(0).contiguous()


# Once, and only where layers are prepared: the import loads the compiler, which takes seconds.
@functools.cache
def _register_operator() -> None:
    """Register attention as one operator, for compiled layers."""
    schema = (
        "(Tensor query, Tensor key, Tensor value, float scaling, float? softcap, int? window)"
        " -> Tensor"
    )
    operator = torch.library.custom_op("skyreward::attend", _attend, mutates_args=(), schema=schema)
    operator.register_fake(_make_output)


def _make_output(query: torch.Tensor, *_: object) -> torch.Tensor:
    """Return a tensor with the shape and strides of the operator's output."""
    return query.new_empty(query.transpose(1, 2).shape)
