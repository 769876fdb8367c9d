"""Loads a checkpoint into a model that is safe to score with, or refuses it with the reason.

Every check happens here, before the first request. A process that only tokenizes needs
`load_encoder`; `load_model` loads everything.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rm_core.attention import (
    AttentionBackend,
    AttentionChoice,
    AttentionTarget,
    choose_attention,
    install_packed_attention,
    select_validated_backend,
)
from rm_core.attention.cpu_kernel import CpuKernelBackend
from rm_core.compilation import CompilationChoice, choose_compilation, recompile_options
from rm_core.config import ModelConfig, read_date
from rm_core.errors import ModelLoadError, RewardError
from rm_core.heads import Head
from rm_core.heads.layout import check_head_names, needs_reward_head
from rm_core.inputs.base_encoder import Encoder
from rm_core.inputs.encoder import ChatEncoder
from rm_core.inputs.image_processor import ImageProcessor
from rm_core.inputs.image_tokens import ImageMarkers, ImageTokens
from rm_core.inputs.images import ImageLimits
from rm_core.inputs.judge_encoder import JudgeEncoder
from rm_core.inputs.policy_tokenizer import PolicyTokenizer
from rm_core.inputs.step_encoder import StepEncoder
from rm_core.model.batch_invariance import is_batch_invariant
from rm_core.model.checkpoint import Checkpoint, open_checkpoint, open_text_files
from rm_core.model.checkpoint_files import MAX_JSON_BYTES
from rm_core.model.decoder import get_decoder, get_decoder_layers
from rm_core.model.fused_layers import fuse_layers
from rm_core.model.fused_rotary import fuse_rotary
from rm_core.model.offload import keep_freed_memory
from rm_core.model.placement import (
    install_transfer_hooks,
    is_new_gpu,
    is_old_gpu,
    move_to_devices,
    resolve_devices,
    resolve_dtype,
)
from rm_core.model.precision import check_precision, use_ieee_products
from rm_core.model.prepacked_linear import prepack_linears
from rm_core.model.probe import probe_decoder
from rm_core.model.quantization import check_quantization, quantize
from rm_core.model.readout_layer import ReadoutLayer
from rm_core.model.self_check import (
    SelfCheck,
    build_self_check,
    compute_plain_outputs,
    encode_samples,
)
from rm_core.model.tokenizer_file import check_tokenizer
from rm_core.model.vision import VisionTower, build_patches
from rm_core.model.vision_config import IMAGE_TOKENS, VisionConfig
from rm_core.model.weight_files import list_tensor_names
from rm_core.model.weights import read_head, read_transformers_config, read_weights
from rm_core.text import is_library_error, quote, summarize_error
from rm_core.types import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_MAX_SAMPLE_TOKENS = 4_096


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checked model on its devices, with the choices made while loading."""

    # Transformers' decoder without a head, in eval mode, with packed attention in its layers and a
    # last layer whose output has the readout tokens only.
    model: PreTrainedModel
    head: Head  # maps the hidden states of the readouts to numbers, on the last device
    readout_layer: str  # whether the last layer runs on the readout tokens only, in words
    pad_token_id: int | None  # padding id of the config; determines the readout token
    checkpoint: Checkpoint  # the checkpoint that was loaded
    attention: AttentionChoice  # name of the attention backend, and the reason for the choice
    backend: AttentionBackend
    deterministic: bool  # whether a reward must not depend on its batch, to the last bit
    # Whether a reward does not depend on its batch, to the last bit, although nothing requires it.
    batch_invariant: bool
    quantized: bool  # whether the linear layers are quantized
    # Whether the decoder layers are compiled, once for rows of any length.
    compilation: CompilationChoice
    # Devices of the model, in the order of its layers; usually one.
    devices: tuple[torch.device, ...]
    fingerprint: Fingerprint  # fingerprint of the model's rewards
    encoder: Encoder  # turns conversations, steps or pairs of answers into token ids for the model
    # Rewards that the engine must reproduce; None if the self-check is off.
    self_check: SelfCheck | None
    vision_tower: VisionTower | None = None  # encodes images; None for a model that reads only text

    @property
    def device(self) -> torch.device:
        """First device, on which a batch enters the model."""
        return self.devices[0]


def load_encoder(config: ModelConfig, checkpoint: Checkpoint | None = None) -> Encoder:
    """Load the encoder for the kind of a checkpoint, with its tokenizer and chat template.

    Raises:
        ModelLoadError: the checkpoint does not exist, its tokenizer or chat template does not fit
            its kind, `max_length` exceeds the model's positions, or a language model needs a head
            for rewards and local files show that it has none.
    """
    checkpoint = checkpoint or open_checkpoint(config, weights=False)
    if checkpoint.head is None:
        _check_head_names(config, checkpoint)
    check_transformers_config(checkpoint)
    check_tokenizer(checkpoint.path / "tokenizer.json", checkpoint.num_embeddings)
    tokenizer = _load_tokenizer(checkpoint.path)
    _check_token_ids(tokenizer, checkpoint)
    if checkpoint.vision is not None:
        _check_image_tokens(tokenizer, checkpoint.path, checkpoint.vision)
    if config.chat_template is not None:
        tokenizer.chat_template = _read_template(config.chat_template, "chat template")
    limit = checkpoint.position_limit
    if config.max_length is not None and config.max_length > limit.positions:
        raise ModelLoadError(
            f"max_length is {config.max_length}, but the model has {limit.positions} "
            f"positions ({limit.reason}); lower max_length"
        )
    try:
        return _create_encoder(config, checkpoint, tokenizer)
    except RewardError:
        raise
    # A tokenizer that could be read may still fail on its first text, even by a panic in Rust.
    except BaseException as error:
        if not is_library_error(error):
            raise
        raise ModelLoadError(
            f"the tokenizer of {checkpoint.path} fails on a short text: {summarize_error(error)}; "
            "does tokenizer.json belong to this checkpoint?"
        ) from error


@functools.cache
def load_policy_tokenizer(name: str) -> PolicyTokenizer:
    """Load the tokenizer of a policy, whose prompts it reads; see `open_text_files` for the name.

    Raises:
        ModelLoadError: the tokenizer cannot be loaded, or its chat template cannot be used.
    """
    return PolicyTokenizer(_load_tokenizer(open_text_files(name)[0]), name)


def _check_head_names(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """Refuse a plain language model, whose kind is a setting, before its weights are read."""
    if checkpoint.adapter is None and needs_reward_head(checkpoint.kind, config, checkpoint.config):
        names = list_tensor_names(checkpoint.path)
        if names is not None:
            check_head_names(checkpoint.path, names, checkpoint.kind, checkpoint.config)


def _create_encoder(
    config: ModelConfig, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase
) -> Encoder:
    choice = checkpoint.kind
    advised_against = checkpoint.entry and checkpoint.entry.system_prompt_advised_against
    options: dict[str, Any] = {
        "max_length": config.max_length or checkpoint.max_length,
        "template_date": read_date(config.template_date) if config.template_date else None,
        "tokenizer_mode": config.tokenizer_mode,
        "tokenizer_check_interval": config.tokenizer_check_interval,
    }
    if choice.kind == "judge":
        path = config.judge_template
        return JudgeEncoder(
            tokenizer,
            judge_template=None if path is None else _read_template(path, "judge template"),
            verdict_prefix=config.verdict_prefix,
            verdict_labels=config.verdict_labels,
            **options,
        )
    options["warn_on_system_prompt"] = bool(advised_against)
    if choice.step_format is not None:
        return StepEncoder(tokenizer, choice.step_format, **options)
    return ChatEncoder(
        tokenizer,
        pad_token_id=checkpoint.config.get("pad_token_id"),
        appended_token=choice.appended_token,
        image_tokens=_create_image_tokens(config, checkpoint, tokenizer),
        **options,
    )


def _create_image_tokens(
    config: ModelConfig, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase
) -> ImageTokens | None:
    vision = checkpoint.vision
    if vision is None:
        return None
    processor = ImageProcessor(
        checkpoint.path,
        limits=ImageLimits(config.max_image_bytes, config.max_image_pixels),
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
    )
    ids = [vision.image_token_id, vision.video_token_id]
    texts = tuple(map(str, tokenizer.convert_ids_to_tokens(ids)))
    markers = ImageMarkers(texts[0], ids[0], vision.vision_start_token_id, texts)
    return ImageTokens(processor, markers, config.max_images)


def _create_vision_tower(
    config: ModelConfig, encoder: Encoder, model: PreTrainedModel, device: torch.device
) -> VisionTower | None:
    if not isinstance(encoder, ChatEncoder) or encoder.image_tokens is None:
        return None
    processor = encoder.image_tokens.processor
    build = functools.partial(
        build_patches,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        rescale_factor=processor.rescale_factor,
        device=device,
    )
    return VisionTower(model, device, build, is_alone=config.deterministic)


@use_ieee_products()
def load_model(config: ModelConfig) -> LoadedModel:
    """Load a reward model; refuse it if its rewards could not be trusted.

    Raises:
        ModelLoadError: the model cannot be served; the message says why and what to do.
    """
    checkpoint = open_checkpoint(config)
    encoder = load_encoder(config, checkpoint)
    devices = resolve_devices(config.device, config.num_devices)
    device = devices[0]
    dtype = resolve_dtype(config.dtype, device, checkpoint.family)
    target = _build_attention_target(config, checkpoint, device, dtype)
    choose_attention(target, config.attention)  # refuses before the weights are read
    compilation = choose_compilation(
        config.compile, device, num_devices=config.num_devices, deterministic=config.deterministic
    )
    check_quantization(
        config.quantization,
        device,
        dtype,
        deterministic=config.deterministic,
        compilation=compilation,
    )
    model = _put_on_devices(read_weights(checkpoint, dtype), devices, config.name)
    if any(parameter.dim() > 2 for parameter in get_decoder(model).parameters()):
        compilation = _check_experts(config, compilation)
    head = read_head(checkpoint, model, encoder.label_ids)
    try:
        vision_tower = _create_vision_tower(config, encoder, model, device)
        self_check = _quantize(model, head, config, devices, encoder, vision_tower)
        install_packed_attention(get_decoder(model))
        probe = probe_decoder(model, devices)
    except RewardError:
        raise
    # transformers' forward pass may fail on any value of a config that transformers accepted.
    except Exception as error:
        raise ModelLoadError(
            f"plain transformers cannot score a built-in conversation with {config.name}: "
            f"{summarize_error(error)}; probably config.json has a wrong value, or the device has "
            "too little memory"
        ) from error
    target = replace(
        target,
        has_softcap=target.has_softcap or any(p.softcap is not None for p in probe.params),
        has_window=target.has_window or any(p.window is not None for p in probe.params),
    )
    attention, backend = select_validated_backend(
        choose_attention(target, config.attention),
        probe.heads,
        probe.params,
        dtype,
        device,
        requested=config.attention,
        deterministic=config.deterministic,
    )
    prepare_layers(
        model,
        quantized=config.quantization != "none",
        compiled=compilation.is_compiled,
        deterministic=config.deterministic,
        on_all_tokens=probe.readout_layer_fault is not None,
    )
    # Not with quantized layers, whose rounding of activations enlarges a difference of one bit.
    if isinstance(backend, CpuKernelBackend) and config.quantization == "none":
        fuse_rotary(get_decoder_layers(model)[0], backend)
    check_precision(model, devices, checkpoint.max_positions - 1)
    if device.type == "cpu":
        keep_freed_memory()
    if len(devices) > 1:
        install_transfer_hooks(model, devices)
    quantized = config.quantization != "none"
    fingerprint = Fingerprint(
        revision=checkpoint.identity,
        template_sha256=encoder.template_sha256,
        dtype=_format_dtype(dtype) + (f"+{config.quantization}" if quantized else ""),
        attention=attention.name,
        template_date=encoder.template_date,
        version=config.version,
    )
    if encoder.template_date:
        logger.warning(
            "the chat template of %s reads today's date and gets %s as long as the model is "
            "loaded; choose another date with the setting `template_date` (--template-date)",
            config.name,
            encoder.template_date,
        )
    if encoder.omitted_tokens:
        logger.warning(
            "the tokenizer of %s would add %s to every text; omitted, because the chat template "
            "does not write it and apply_chat_template does not add it either",
            config.name,
            " ".join(encoder.omitted_tokens),
        )
    logger.info(
        "loaded %s: revision %s, %s, %s on %s, attention %s (%s), %s (%s), limit %d tokens",
        config.name,
        checkpoint.identity,
        head.description,
        fingerprint.dtype,
        ", ".join(map(str, devices)),
        attention.name,
        attention.reason,
        "compiled" if compilation.is_compiled else "not compiled",
        compilation.reason,
        encoder.max_length,
    )
    return LoadedModel(
        model=model,
        head=head,
        readout_layer=_describe_readout_layer(config, probe.readout_layer_fault),
        pad_token_id=checkpoint.config.get("pad_token_id"),
        checkpoint=checkpoint,
        attention=attention,
        backend=backend,
        deterministic=config.deterministic,
        batch_invariant=vision_tower is None
        and is_batch_invariant(get_decoder(model), checkpoint.family, backend),
        quantized=quantized,
        compilation=compilation,
        devices=devices,
        fingerprint=fingerprint,
        encoder=encoder,
        self_check=self_check,
        vision_tower=vision_tower,
    )


def _check_experts(config: ModelConfig, compilation: CompilationChoice) -> CompilationChoice:
    """Choose the compilation of a mixture of experts, and refuse settings that do not work."""
    if config.deterministic:
        raise ModelLoadError(
            f"{config.name} has experts, whose products depend on how many tokens of a batch each "
            "of them gets, so its rewards are not batch-invariant; turn `deterministic` off"
        )
    if config.quantization != "none":
        raise ModelLoadError(
            f"{config.name} has experts, which hold most of its weights and are not linear modules "
            f"that quantization {config.quantization!r} knows; use 'none'"
        )
    if config.compile != "auto":
        return compilation
    return CompilationChoice(False, "tokens choose the experts, which compilers cannot foresee")


def _describe_readout_layer(config: ModelConfig, fault: str | None) -> str:
    if config.deterministic:
        return "all tokens: `deterministic` needs shapes that do not depend on the readouts"
    return f"all tokens: {fault}" if fault else "readout tokens only"


def _quantize(
    model: PreTrainedModel,
    head: Head,
    config: ModelConfig,
    devices: tuple[torch.device, ...],
    encoder: Encoder,
    vision_tower: VisionTower | None,
) -> SelfCheck | None:
    """Quantize the layers in place; score the samples with plain transformers before and after."""
    quantized = config.quantization != "none"
    samples = encode_samples(encoder) if config.self_check else ()
    longest = max((sample.num_tokens for sample in samples), default=0)
    if longest > _MAX_SAMPLE_TOKENS:
        # Eager attention takes memory quadratic in the number of tokens.
        raise ModelLoadError(
            f"the chat template of {config.name} turns a short built-in conversation into "
            f"{longest:,} tokens, and at most {_MAX_SAMPLE_TOKENS:,} are allowed; correct the "
            "template, or give another template with --chat-template (setting `chat_template`)"
        )
    unquantized = (
        compute_plain_outputs(model, head, devices, samples, vision_tower)
        if samples and quantized
        else None
    )
    quantize(get_decoder_layers(model), config.quantization)
    if not samples:
        return None
    return build_self_check(model, head, devices, samples, vision_tower, unquantized)


def prepare_layers(
    model: PreTrainedModel,
    *,
    quantized: bool = False,
    compiled: bool = False,
    deterministic: bool = False,
    on_all_tokens: bool = False,
) -> None:
    """Prepare a decoder, on its device, for packed rows; in place.

    `deterministic` keeps torch's own linear layers, whose results for a row do not depend on the
    other rows. `on_all_tokens` runs the last layer on all tokens, because its parts are unknown.
    """
    install_packed_attention(get_decoder(model))
    layers = get_decoder_layers(model)
    # Compilers do not know the packed layout of weights, and choose a layout themselves.
    plain = not quantized and not deterministic and not compiled
    if plain and model.device.type == "cpu" and model.dtype == torch.float32:
        fuse_layers(get_decoder(model))
        prepack_linears(layers)
    if compiled:
        for layer in list(layers)[:-1]:
            layer.compile(dynamic=True, **recompile_options())
    layers[-1] = ReadoutLayer(layers[-1], on_all_tokens)


def _build_attention_target(
    config: ModelConfig, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> AttentionTarget:
    gemma2 = checkpoint.family == "gemma2"
    return AttentionTarget(
        family=checkpoint.family,
        device_type=device.type,
        dtype=_format_dtype(dtype),
        # Also for a Gemma-2 config without the softcap: transformers has no SDPA for Gemma-2. What
        # other architectures have is measured once they are loaded.
        has_softcap=gemma2 or bool(checkpoint.config.get("attn_logit_softcapping")),
        has_window=_has_window(checkpoint.config),
        deterministic=config.deterministic,
        is_old_gpu=is_old_gpu(device),
        is_new_gpu=is_new_gpu(device),
    )


def _put_on_devices(
    model: PreTrainedModel, devices: tuple[torch.device, ...], name: str
) -> PreTrainedModel:
    try:
        move_to_devices(model, devices)
    except RuntimeError as error:  # out of memory, or a broken device
        raise ModelLoadError(
            f"{name} in {_format_dtype(model.dtype)} cannot be moved to "
            f"{', '.join(map(str, devices))}: {summarize_error(error)}; use a device with more "
            "memory, or several devices (`num_gpus`)"
        ) from error
    model.eval()
    return model


def _has_window(config: Mapping[str, Any]) -> bool:
    """Return whether any layer has a sliding window; the families have different keys for it."""
    layer_types = config.get("layer_types") or ()
    return bool(
        "sliding_attention" in layer_types
        or config.get("use_sliding_window")
        or (config.get("model_type") == "gemma2" and config.get("sliding_window"))
    )


def _read_template(path: str, name: str) -> str:
    file = Path(path).expanduser()
    try:
        # Reading a pipe would block, and reading a device would never end.
        if file.exists() and not (file.is_file() and file.stat().st_size <= MAX_JSON_BYTES):
            raise ModelLoadError(
                f"the {name} {path!r} is not a regular file of at most "
                f"{MAX_JSON_BYTES >> 20} MiB; give the path of a Jinja file"
            )
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"the {name} {path!r} cannot be read: {error}") from error


def check_transformers_config(checkpoint: Checkpoint) -> None:
    """Refuse a config.json that transformers rejects, or whose parts contradict each other."""
    from transformers.models.auto import configuration_auto, modeling_auto

    file, family = checkpoint.path / "config.json", checkpoint.family
    architecture = (checkpoint.config.get("architectures") or ["none"])[0]
    known = {
        name.replace("_", "").replace("-", "")
        for name in vars(configuration_auto)["CONFIG_MAPPING_NAMES"]
    }
    named = architecture.split("For")[0].lower().replace("_", "")
    if named in known and not family.replace("_", "").replace("-", "").startswith(named):
        raise ModelLoadError(
            f"model_type of {file} is {quote(family, 80)}, and transformers builds the model by "
            f"it; the architecture {architecture[:80]} is another: correct one of the two"
        )
    # Configs of other models may fetch the configs of their parts.
    tasks = ["CAUSAL_LM", "SEQUENCE_CLASSIFICATION"]
    if checkpoint.vision is not None:
        tasks = ["IMAGE_TEXT_TO_TEXT"]
    names = [vars(modeling_auto)[f"MODEL_FOR_{task}_MAPPING_NAMES"] for task in tasks]
    if not any(family in mapping for mapping in names):
        raise ModelLoadError(
            f"model_type of {file} is {quote(family, 80)}, which transformers does not know as a "
            "language model; give a reward model whose decoder is a causal language model, or "
            "install a release of transformers that has it"
        )
    read_transformers_config(checkpoint.path)


def _check_token_ids(tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint) -> None:
    """Refuse a tokenizer with ids for which the embedding has no row."""
    rows = checkpoint.num_embeddings
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if not vocabulary:
        raise ModelLoadError(
            f"the tokenizer of {checkpoint.path} has no tokens; is tokenizer.json missing or "
            "incomplete?"
        )
    token, largest = max(vocabulary.items(), key=lambda item: item[1])
    if rows is not None and largest >= rows:
        raise ModelLoadError(
            f"the tokenizer of {checkpoint.path} has the id {largest} ({token!r:.40}), but the "
            f"embedding has {rows} rows, for ids 0 to {rows - 1}; remove the added token from "
            "tokenizer.json, or resize the embedding (model.resize_token_embeddings) and save both"
        )


def _check_image_tokens(
    tokenizer: PreTrainedTokenizerBase, path: Path, vision: VisionConfig
) -> None:
    """Refuse a tokenizer whose tokens for images are not those of config.json."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    for token, key in IMAGE_TOKENS.items():
        declared, found = getattr(vision, key), vocabulary.get(token)
        if found != declared:
            raise ModelLoadError(
                f"{path / 'config.json'} says that {key} is {declared}, but in the tokenizer "
                f"{token} {'is missing' if found is None else f'has the id {found}'}; images would "
                "be read as other tokens: give the tokenizer that the model was trained with"
            )


def _load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=False
        )
    # transformers raises many classes here; all mean that the tokenizer is unusable.
    except BaseException as error:
        if not is_library_error(error):
            raise
        raise ModelLoadError(
            f"the tokenizer of {path} cannot be loaded: {summarize_error(error)}; is "
            "tokenizer.json missing or incomplete?"
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelLoadError(
            f"the tokenizer of {path} is a {type(tokenizer).__name__}, which has no "
            "tokenizer.json; save it with a fast tokenizer of transformers (save_pretrained)"
        )
    return tokenizer


def _format_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
