"""Compares the engine with plain transformers on three short conversations, at every load.

A setting in config.json that changes what plain transformers computes, and that the packed engine
does not follow, would give plausible but wrong rewards. Before the engine's hooks are installed,
the loaded model scores the conversations with its own forward pass: eager attention, one
conversation at a time, on the device and in the dtype used for serving. The engine then scores the
same token ids, complete and truncated at several positions, and the model is refused if rewards
differ by more than rounding.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rm_core.config import Kind
from rm_core.errors import InvalidConversationError, ModelLoadError
from rm_core.heads import Head
from rm_core.inputs.base_encoder import Encoder
from rm_core.inputs.conversations import get_images
from rm_core.inputs.encoder import ChatEncoder, find_readout_position
from rm_core.inputs.judge_items import JudgePair
from rm_core.inputs.sample_image import write_png
from rm_core.inputs.step_items import StepItem
from rm_core.model.placement import install_transfer_hooks
from rm_core.model.vision import VisionTower
from rm_core.packing import TokenIds
from rm_core.tolerance import FLOAT32_ROUNDING_FACTOR, ROUNDING_FACTOR, compute_tolerance
from rm_core.types import Encoded, EncodedImage, PrerenderedText, ScoreError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_QUESTION = {"role": "user", "content": "Which river flows through Paris, and where does it end?"}
# Two answers to one prompt, so that the engine shares a segment between them; and several turns.
CONVERSATIONS = (
    [
        _QUESTION,
        {"role": "assistant", "content": "The Seine. It ends at Le Havre, in the Channel."},
    ],
    [_QUESTION, {"role": "assistant", "content": "I don't know."}],
    [
        _QUESTION,
        {"role": "assistant", "content": "The Seine."},
        {"role": "user", "content": "And the Loire? Name three towns on it."},
        {
            "role": "assistant",
            "content": "Orléans, Tours and Nantes. It is 1,006 kilometres long:\n- source: Mont "
            "Gerbier-de-Jonc\n- mouth: Saint-Nazaire",
        },
    ],
)
"""Messages of each conversation; the chat templates of most families accept them."""

_IMAGE_QUESTION = [
    {"type": "image", "image": write_png(60, 44)},
    {"type": "text", "text": "Which colours does this picture have, and where is it brightest?"},
]
IMAGE_CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [
        {"role": "user", "content": _IMAGE_QUESTION},
        {"role": "assistant", "content": "Red, green and blue; it is brightest at the bottom."},
    ],
    [
        {"role": "user", "content": _IMAGE_QUESTION},
        {"role": "assistant", "content": "None."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And this one: "},
                {"type": "image", "image": write_png(100, 150)},
                {"type": "text", "text": "?"},
            ],
        },
        {"role": "assistant", "content": "It is higher than it is wide."},
    ],
)
"""Further conversations for models that read images; the two share an image."""

_ANSWERS = tuple(messages[-1]["content"] for messages in CONVERSATIONS)
_ITEMS: dict[Kind, tuple[object, ...]] = {
    "step": tuple(StepItem(_QUESTION["content"], response=answer) for answer in _ANSWERS),
    "judge": (
        JudgePair(_QUESTION["content"], *_ANSWERS[:2]),
        JudgePair(_QUESTION["content"], *_ANSWERS[1:]),
    ),
}
# Distance between the ends of prefixes, in tokens. Plain transformers computes the logits of all
# prefixes in one pass, the engine in one batch.
_PREFIX_STEP = 16


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """Plain transformers' rewards of the built-in conversations and some of their prefixes."""

    model: str  # name or folder of the model, for messages
    sequences: tuple[TokenIds, ...]  # token ids of each sequence; the complete conversations first
    images: tuple[EncodedImage, ...]  # images whose token ids the sequences have
    # The head's outputs on plain transformers' hidden states, for each sequence.
    outputs: tuple[tuple[float, ...], ...]
    tolerances: tuple[tuple[float, ...], ...]  # largest allowed absolute difference of each output
    # Mean absolute difference of plain transformers from itself in a wider dtype, or without
    # quantization.
    mean_error: float
    description: str  # dtype and attention of the reference, for messages

    def compare(self, outputs: Sequence[float | ScoreError]) -> float:
        """Return the largest absolute difference from plain transformers, if the check allows it.

        The outputs are those of all sequences in order. 0 if plain transformers computed no finite
        output.
        """
        largest = 0.0
        for value, expected, allowed in zip(
            outputs, chain(*self.outputs), chain(*self.tolerances), strict=True
        ):
            if not math.isfinite(expected):
                continue  # the engine returns an error for such a conversation
            if isinstance(value, ScoreError):
                raise ModelLoadError(
                    f"the self-check of {self.model} failed: {self.description} gives a built-in "
                    f"conversation the reward {expected:.6g}, and the engine cannot score it: "
                    f"{value.message}"
                )
            difference = abs(value - expected)
            if not difference <= allowed:
                raise ModelLoadError(
                    f"the self-check of {self.model} failed: {self.description} gives a built-in "
                    f"conversation the reward {expected:.6g}, the engine gives {value:.6g} "
                    f"(allowed difference {allowed:.2g}). Probably config.json has a setting, or "
                    "the architecture a part, that the engine does not follow, such as a different "
                    "attention mask or different rotary embeddings; remove a setting that the "
                    "model was trained without, otherwise the model cannot be served"
                )
            largest = max(largest, difference)
        return largest


def encode_samples(encoder: Encoder) -> tuple[Encoded, ...]:
    """Encode built-in conversations; their ids have to be those of `apply_chat_template`.

    A step model reads them as problems with steps, and a judge as pairs of answers.
    """
    if not isinstance(encoder, ChatEncoder):
        items = _ITEMS[encoder.kind]
        # Only a limit of a few tokens is an error here.
        encoded = encoder.encode_all(items)
        return tuple(each for each in encoded if isinstance(each, Encoded))
    conversations = CONVERSATIONS + (IMAGE_CONVERSATIONS if encoder.reads_images else ())
    return tuple(_encode_sample(encoder, messages) for messages in conversations)


def _encode_sample(encoder: ChatEncoder, messages: list[dict[str, Any]]) -> Encoded:
    try:
        encoded = encoder.encode(messages, "right")
    except InvalidConversationError:
        if get_images(messages):
            raise
        # The template refuses ordinary turns. Any tokens are enough to check the forward pass.
        text = "\n".join(message["content"] for message in messages)
        return encoder.encode(PrerenderedText(text), "right")
    if not encoder.depends_on_date:  # otherwise transformers writes the date and time of this call
        input_ids = encoder.collapse_images(encoded)
        ours = encoder.strip_bos(input_ids[: len(input_ids) - len(encoder.appended_ids)])
        plain = encoder.strip_bos(encoder.encode_with_transformers(messages))
        is_short = not encoded.truncated and len(ours) < len(plain)
        if ours != plain[: len(ours)] or is_short:
            differing = (i for i, (a, b) in enumerate(zip(ours, plain, strict=False)) if a != b)
            index = next(differing, min(len(ours), len(plain)))
            raise ModelLoadError(
                "the self-check failed: the tokens of a built-in conversation differ from those "
                f"of transformers' apply_chat_template ({len(ours)} and {len(plain)} tokens "
                f"without BOS, first difference at index {index}); the installed transformers "
                "renders or tokenizes differently: install the release pinned in constraints.txt"
            )
    return encoded


@torch.inference_mode()
def compute_plain_outputs(
    model: PreTrainedModel,
    head: Head,
    devices: Sequence[torch.device],
    samples: Sequence[Encoded],
    vision_tower: VisionTower | None = None,
) -> list[torch.Tensor]:
    """Score sequences with the model's own forward pass, one sequence at a time.

    The decoder is as loaded by transformers, with eager attention and without the engine's hooks;
    the head is in float32.

    Returns:
        For each sequence, float32 `[num_tokens, num_outputs]` on the CPU: the outputs at every
        token, if it were read. NaN at most tokens if the head has several outputs: that of a judge
        multiplies the whole vocabulary.
    """
    handles = install_transfer_hooks(model, devices) if len(devices) > 1 else []
    results = []
    try:
        for sample in samples:
            ids = sample.vocabulary_ids
            inputs = {"input_ids": torch.tensor([ids], device=devices[0])}
            if vision_tower is not None and sample.images:
                inputs |= vision_tower.build_plain_inputs(sample)
            hidden = model(**inputs).last_hidden_state[0]
            positions = list(range(len(ids)))
            if head.num_outputs > 1:
                pad = model.config.get_text_config().pad_token_id
                read = {len(ids) - 1, find_readout_position(ids, pad)}
                positions = sorted({*range(_PREFIX_STEP - 1, len(ids), _PREFIX_STEP), *read})
            outputs = torch.full((len(ids), head.num_outputs), torch.nan)
            outputs[positions] = head.apply(hidden[positions]).cpu()
            results.append(outputs)
    finally:
        for handle in handles:
            handle.remove()
    return results


def build_self_check(
    model: PreTrainedModel,
    head: Head,
    devices: Sequence[torch.device],
    samples: Sequence[Encoded],
    vision_tower: VisionTower | None = None,
    unquantized: Sequence[torch.Tensor] | None = None,
) -> SelfCheck:
    """Compute the rewards that the engine must reproduce, and their tolerances.

    Rounding is measured, because some models amplify it: plain transformers in half precision is
    compared with itself in float32, in float32 with itself in float64, and with quantized layers
    with itself before quantization. `samples` come from `encode_samples`; `unquantized` are their
    outputs before the layers were quantized, the other arguments those of `compute_plain_outputs`.
    """
    plain = compute_plain_outputs(model, head, devices, samples, vision_tower)
    factor = ROUNDING_FACTOR
    if unquantized is not None:
        mean_error = _compute_mean_difference(plain, unquantized)
    else:
        # The vision tower has products that cannot be widened; its error is not measured.
        texts = [index for index, sample in enumerate(samples) if not sample.images]
        longest = max(texts, key=lambda index: samples[index].num_tokens)
        with _widen_products(model):
            exact = compute_plain_outputs(model, head, devices, [samples[longest]], None)
        mean_error = _compute_mean_difference([plain[longest]], exact)
        if model.dtype == torch.float32:
            factor = FLOAT32_ROUNDING_FACTOR
    # The readout of a sequence that ends with padding is an earlier token.
    pad = model.config.get_text_config().pad_token_id
    expected = {
        sample.input_ids: tuple(outputs[find_readout_position(sample.input_ids, pad)].tolist())
        for sample, outputs in zip(samples, plain, strict=True)
    }
    for sample, outputs in zip(samples, plain, strict=True):
        ids = sample.input_ids
        for end in range(_PREFIX_STEP, len(ids), _PREFIX_STEP):
            if ids[end - 1] != pad:
                expected.setdefault(ids[:end], tuple(outputs[end - 1].tolist()))
    dtype = str(model.dtype).removeprefix("torch.")
    return SelfCheck(
        model=str(model.name_or_path),
        sequences=tuple(expected),
        images=tuple(placed.image for sample in samples for placed in sample.images),
        outputs=tuple(expected.values()),
        tolerances=tuple(
            tuple(compute_tolerance(value, model.dtype, mean_error, factor) for value in outputs)
            for outputs in expected.values()
        ),
        mean_error=mean_error,
        description=f"plain transformers (eager, {dtype})",
    )


def _compute_mean_difference(plain: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """Return the mean over all tokens of all sequences; 0 if no difference is finite."""
    pairs = zip(plain, exact, strict=True)
    difference = torch.cat([(a - b).abs().flatten() for a, b in pairs])
    finite = difference[difference.isfinite()]
    return float(finite.mean()) if len(finite) else 0.0


@contextlib.contextmanager
def _widen_products(model: PreTrainedModel) -> Iterator[None]:
    """Make a half-precision model compute in float32, and a float32 model in float64.

    The output of the embeddings is widened, and each other module uses wider copies of its weights
    while it runs, so that memory holds the copies of one module at a time.
    """
    wide = torch.float64 if model.dtype == torch.float32 else torch.float32
    narrow: dict[nn.Parameter, torch.Tensor] = {}

    def widen(module: nn.Module, _args: Any) -> None:
        for parameter in module.parameters(recurse=False):
            narrow[parameter] = parameter.data
            parameter.data = parameter.data.to(wide)

    def restore(module: nn.Module, _args: Any, _out: Any) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = narrow.pop(parameter)

    handles = []
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            handles.append(module.register_forward_hook(lambda _m, _args, out: out.to(wide)))
        elif any(True for _ in module.parameters(recurse=False)):
            handles += [
                module.register_forward_pre_hook(widen),
                module.register_forward_hook(restore, always_call=True),
            ]
    # The kernels for several experts at once have no float64.
    experts = model.config._experts_implementation
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(experts)
        for handle in handles:
            handle.remove()
