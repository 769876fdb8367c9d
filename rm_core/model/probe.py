"""Runs a tiny row through a decoder and measures what the engine relies on.

Architectures are not served by a list. What a packed row needs is measured instead: every layer
attends through transformers' attention interface, once, with keys and values of one shape and with
the window that the config declares. What the numbers of the attention itself are is the matter of
`rm_core.model.self_check`. The same row shows whether the last layer's parts are those that
`rm_core.model.readout_layer` knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from rm_core.attention import (
    AttentionHeads,
    AttentionParams,
    PackedAttention,
    Segment,
    run_packed_attention,
)
from rm_core.attention.eager import EagerBackend
from rm_core.errors import ModelLoadError
from rm_core.model.decoder import (
    get_decoder,
    get_decoder_layers,
    get_head_dim,
    get_num_key_value_heads,
)
from rm_core.model.placement import install_transfer_hooks
from rm_core.model.readout_layer import ReadoutLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NUM_TOKENS = 24
_READOUTS = (5, 6, 23)
# Largest difference of keys and values, and of a layer's output, in shares of the largest number.
# The former are computed by the same operations, the latter by products of other shapes.
_KEY_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.005}
_OUTPUT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass(frozen=True, slots=True)
class Probe:
    """What the tiny row has shown."""

    heads: AttentionHeads  # head counts and head size, equal in all layers
    params: tuple[AttentionParams, ...]  # attention parameters of each layer, in order
    # Why the last layer cannot run on the readout tokens only; None if it can.
    readout_layer_fault: str | None


@dataclass(slots=True)
class _RecordingBackend:
    """Eager attention that keeps the keys, values and parameters of every call."""

    calls: list[tuple[int, torch.Tensor, torch.Tensor, AttentionParams]] = field(
        default_factory=list
    )

    def plan(
        self, segments: Sequence[Segment], num_keys: int, device: torch.device
    ) -> list[Segment]:
        """See `AttentionBackend`."""
        return list(segments)

    def attend(
        self,
        plan: list[Segment],
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `AttentionBackend`."""
        if key.shape != value.shape:
            raise ModelLoadError(
                f"the keys of a layer have shape {list(key.shape)} and its values "
                f"{list(value.shape)}, as with latent attention; packed rows need keys and values "
                "of one shape, so this architecture cannot be served"
            )
        self.calls.append((query.shape[1], key, value, params))
        return EagerBackend().attend(plan, query, key, value, params)


@torch.inference_mode()
def probe_decoder(model: PreTrainedModel, devices: Sequence[torch.device]) -> Probe:
    """Run a tiny row through a decoder; refuse an architecture that does not work with packed rows.

    Packed attention is installed in the decoder, and its layers are not prepared yet.
    """
    layers, config = get_decoder_layers(model), model.config.get_text_config()
    backend = _RecordingBackend()
    readouts = torch.tensor(_READOUTS)
    token_segments = [Segment(i, i + 1, ((0, row + 1),)) for i, row in enumerate(_READOUTS)]
    packed = PackedAttention(
        backend,
        [Segment(0, _NUM_TOKENS, ((0, _NUM_TOKENS),))],
        _NUM_TOKENS,
        _NUM_TOKENS,
        readout_plan=token_segments,
    )
    stages = [(device, replace(packed, readouts=readouts.to(device))) for device in devices]
    ids = torch.arange(1, _NUM_TOKENS + 1, device=devices[0]) * 7 % config.vocab_size
    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    outputs: list[Any] = []
    handles = install_transfer_hooks(model, devices) if len(devices) > 1 else []
    handles += [
        layers[-1].register_forward_pre_hook(
            lambda _m, args, options: inputs.append((args, options)), with_kwargs=True
        ),
        layers[-1].register_forward_hook(lambda _m, _args, out: outputs.append(out)),
    ]
    try:
        with run_packed_attention(stages):
            get_decoder(model)(
                input_ids=ids.unsqueeze(0),
                position_ids=torch.arange(_NUM_TOKENS, device=devices[0]).unsqueeze(0),
                use_cache=False,
            )
    finally:
        for handle in handles:
            handle.remove()
    calls = tuple(backend.calls)
    _check_calls(model, calls)
    _check_windows(config, [params for *_, params in calls])
    num_heads, key, _, _ = calls[0]
    heads = AttentionHeads(num_heads, key.shape[1], key.shape[2])
    with run_packed_attention(stages):
        fault = _find_readout_fault(layers[-1], inputs[0], outputs[0], calls[-1])
    return Probe(heads, tuple(params for *_, params in calls), fault)


def _check_calls(model: PreTrainedModel, calls: Sequence[tuple[Any, ...]]) -> None:
    config, num_layers = model.config.get_text_config(), len(get_decoder_layers(model))
    if len(calls) != num_layers:
        raise ModelLoadError(
            f"{type(model).__name__} has {num_layers} layers, of which {len(calls)} attend through "
            "the attention interface of transformers; layers of another kind, such as linear "
            "attention, would mix the conversations of a batch, so this architecture cannot be "
            "served"
        )
    declared = get_num_key_value_heads(config), get_head_dim(config)
    for index, (_, key, _, _) in enumerate(calls):
        if tuple(key.shape[1:]) != declared:
            raise ModelLoadError(
                f"layer {index} of {type(model).__name__} has {key.shape[1]} key-value heads of "
                f"size {key.shape[2]}, and config.json declares {declared[0]} of size "
                f"{declared[1]}; packed rows need one shape, so this architecture cannot be served"
            )


def _check_windows(config: Any, params: Sequence[AttentionParams]) -> None:
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", None) is False:
        window = None
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * len(params)
    for index, (kind, used) in enumerate(zip(types, params, strict=True)):
        declared = window if kind == "sliding_attention" else None
        if used.window != declared:
            raise ModelLoadError(
                f"layer {index} attends within a window of {used.window} tokens, and the config "
                f"declares {declared} (null for none); rewards of long conversations would be "
                "wrong, so this architecture cannot be served"
            )


def _find_readout_fault(
    layer: Any,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    output: Any,
    call: tuple[int, torch.Tensor, torch.Tensor, AttentionParams],
) -> str | None:
    """Compare the last layer on the readout tokens with itself on all tokens."""
    args, options = inputs
    if not isinstance(output, torch.Tensor):
        return f"the layer returns a {type(output).__name__}"
    _, key, value, _ = call
    readout_layer = ReadoutLayer(layer)
    try:
        computed = readout_layer.compute_keys_and_values(args[0], *options["position_embeddings"])
        output_at_readouts = readout_layer(*args, **options)
    # An unknown layer may lack any of the parts, and fail with any exception.
    except Exception as error:
        return f"the layer has other parts than those known ({type(error).__name__})"
    for name, ours, theirs in zip(("keys", "values"), computed, (key, value), strict=True):
        if not _is_close(ours[0].transpose(0, 1), theirs, _KEY_TOLERANCE):
            return f"the layer computes its {name} differently"
    if not _is_close(output_at_readouts, output[:, list(_READOUTS)], _OUTPUT_TOLERANCE):
        return "the layer's output for a token depends on other tokens outside attention"
    return None


def _is_close(
    ours: torch.Tensor, theirs: torch.Tensor, tolerance: dict[torch.dtype, float]
) -> bool:
    if ours.shape != theirs.shape:
        return False
    allowed = tolerance[theirs.dtype] * float(theirs.abs().max())
    return float((ours.float() - theirs.float()).abs().max()) <= allowed
