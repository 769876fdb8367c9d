"""Settings of one served model. `serve.config.settings` has those of the service."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from rm_core.config import (
    Attention,
    BatchConfig,
    Compile,
    DType,
    Kind,
    ModelConfig,
    Quantization,
    StepFormat,
    TokenizerMode,
    read_date,
)
from rm_core.errors import ModelLoadError
from rm_core.model.checkpoint import find_local_folder, split_name


class ModelSettings(BaseModel):
    """One served model. As a string: `NAME`, `ALIAS=NAME`, either with `@REVISION`.

    NAME may be `BASE+ADAPTER`, each with its revision.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Model to load: `demo`, a local folder, or a hub id (ORG/NAME). BASE+ADAPTER merges a LoRA
    adapter into a base model (needs peft)."""
    alias: str = ""
    """Name in requests. Default: the folder's name, or the hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub (default: main). The commit is reported in the
    fingerprint."""
    dtype: DType = "auto"
    """Number format of the decoder. `auto`: bfloat16 on CUDA, float32 on CPU. The head's product is
    always float32; float16 is refused for Gemma-2."""
    attention: Attention = "auto"
    """Attention backend: `flash_attention_4`, `flash_attention_2`, `varlen`, `flex` (CUDA), `sdpa`
    (CPU) or `eager`. `auto` chooses one and reports the reason."""
    device: str = "auto"
    """Device of a replica. `auto`: the first CUDA device that the replica sees, else the CPU."""
    max_length: PositiveInt | None = None
    """Maximum number of tokens in a conversation. Default: the trained length where the catalogue
    knows it, else all positions."""
    chat_template: str | None = None
    """Jinja file that replaces or supplies the chat template. Without any template loading is
    refused."""
    template_date: str | None = None
    """Date (YYYY-MM-DD) that a template which asks for today's date gets; part of the fingerprint.
    Default: the day on which the service starts."""
    deterministic: bool = False
    """Give each conversation the same reward to the last bit alone, in any batch and in any order.
    Slower (0.59x for pairs, 0.34x for groups of 16 on two CPU cores)."""
    quantization: Quantization = "none"
    """Quantization of the linear layers: `int8`, `fp8` (weights and activations, one scale for each
    token), `int8-weights` or `fp8-weights`, by torchao 0.18 or newer. Lossy, part of the
    fingerprint; measure it with `skyreward verify`. `fp8` needs dtype bfloat16; on CUDA `int8` and
    `fp8` need compiled layers."""
    compile: Compile = "auto"
    """Run torch.compile on the decoder layers, once for rows of any length; loading waits for the
    compiler. `auto`: on CUDA, unless `deterministic` is on, the layers are on several GPUs or the
    compiler does not work; the reason is in `/info`. Not measured on a GPU."""
    self_check: bool = True
    """Compare the engine with plain transformers at load, and refuse a model whose rewards differ
    by more than rounding."""
    tokenizer_mode: TokenizerMode = "auto"
    """Library that tokenizes. `auto`: fastokens if it gives the token ids of `tokenizers` for many
    texts at load, else `tokenizers`, which takes 40 times the time."""
    tokenizer_check_interval: NonNegativeInt = 1_000
    """Number of texts of which one is tokenized by `tokenizers` as well, where fastokens is in use;
    0 turns the check off. After a difference, `tokenizers` is used."""
    kind: Kind | Literal["auto"] = "auto"
    """What the model is served as: `classifier` (one reward at the last token), `step` (process
    reward model, a value at every step) or `judge` (generative judge of two answers). `auto`: as
    the catalogue or the architecture in config.json says."""
    step_format: StepFormat | Literal["auto"] = "auto"
    """How a step model's authors divide a solution into steps: `skywork`, `qwen-math`,
    `math-shepherd` or `rlhflow`; `skywork-prmbench` is that of a benchmark. `auto`: as for
    `kind`."""
    label: NonNegativeInt | None = None
    """Index of the label that is the reward, for a classifier with several labels."""
    label_weights: tuple[float, ...] | None = None
    """Weight of each label in the reward, for a classifier with several labels."""
    lm_head_tokens: tuple[int, ...] | None = None
    """Token ids of one or two rows of the language model's head, for causal models whose reward is
    a logit: that of the first token, minus that of the second if there is one."""
    allow_bin: bool = False
    """Read weights from `pytorch_model*.bin` also where the catalogue does not know the checkpoint
    as published in this form. Only tensors are read; code in the file is never run. `skyreward
    convert` writes safetensors instead."""
    judge_template: str | None = None
    """Jinja file that replaces the prompt of a judge."""
    verdict_prefix: str = "[["
    """Text at the start of a judge's reply, before the label."""
    verdict_labels: tuple[str, str] = ("A", "B")
    """Labels with which a judge names the first and the second answer."""
    appended_token: str | None = None
    """Token that is appended to every conversation, and at which a classifier is read. Default:
    what the architecture says."""
    min_pixels: PositiveInt | None = None
    """Smaller images are enlarged to about so many pixels. Default: as the checkpoint's
    preprocessor_config.json says."""
    max_pixels: PositiveInt | None = None
    """Larger images are reduced to at most so many pixels; an image takes a token for each 28 x 28
    of them. Default: as the checkpoint's preprocessor_config.json says."""
    max_image_bytes: PositiveInt = 10 * 2**20
    """Maximum size of an image's file in bytes."""
    max_image_pixels: PositiveInt = 4_096 * 4_096
    """Maximum number of pixels of an image before it is resized."""
    max_images: NonNegativeInt = 16
    """Maximum number of images in a conversation."""
    when_asleep: Literal["refuse", "wait"] = "refuse"
    """What requests get while the model sleeps: 503 with `model_asleep` and Retry-After, or they
    wait until it is woken or their deadline passes."""
    version: str | None = Field(default=None, min_length=1, max_length=200)
    """Name of the weights in fingerprints, such as a trainer's step; `reload` gives another one."""
    max_batch_tokens: PositiveInt | None = None
    """Maximum number of tokens in a batch, shared ones counted once; a longer conversation goes
    alone. Default: 4,096 on CPUs; on CUDA from the model's size, for batches of about 0.4 s on an
    H200 and at most 65,536 tokens, and from free memory."""
    prefix_cache_bytes: int | Literal["auto"] = "auto"
    """Memory in bytes for keys and values of prompts, which each replica keeps between batches, so
    that a prompt which recurs is not computed again; 0 turns the cache off. `auto`: half of the GPU
    memory that weights and a batch leave free, or an eighth of the CPU's and at most 2 GiB; in any
    case at most the prompts of 64 batches."""
    vision_cache_bytes: int | Literal["auto"] = "auto"
    """Memory in bytes for the features of images, which each replica keeps between batches, so that
    an image that recurs is not encoded again; 0 turns the cache off."""
    cache_bytes: NonNegativeInt = 256 * 2**20
    """Memory in bytes for rewards computed before, shared by all replicas; 0 turns the cache
    off."""
    calibration: str | None = None
    """File that `skyreward calibrate` wrote for this model; answers then have `calibrated_reward`.
    A file of another revision or template is refused, and after a `reload` rewards are calibrated
    only while the revision is that of the file."""
    num_replicas: PositiveInt = 1
    """Number of copies of the model, one device each."""
    max_replicas: PositiveInt | None = None
    """Maximum number of copies under load, by queued tokens. Default: `num_replicas`."""
    target_queued_tokens: PositiveInt = 65_536
    """Number of queued tokens for which one copy is enough."""
    stuck_after_s: PositiveFloat | None = None
    """Seconds after which a running batch makes its replica unhealthy. Default: 20 times the
    expected duration, at least 120 (900 with `compile`)."""
    num_gpus: NonNegativeFloat | None = None
    """GPUs of a replica: a fraction of one, or several, over which the layers are spread; 0 uses
    the CPU even where there are GPUs. Default: 1 if the cluster has any."""
    cpu_threads: PositiveInt | None = None
    """Number of torch threads of a replica on a CPU. Default: cores / replicas."""

    @model_validator(mode="before")
    @classmethod
    def _parse_short_form(cls, value: object) -> object:
        if isinstance(value, str):
            # The name of a folder may contain `=` or `@`.
            has_alias = "=" in value and not find_local_folder(value)
            alias, rest = value.split("=", 1) if has_alias else ("", value)
            base, plus, adapter = (rest, "", "") if find_local_folder(rest) else rest.partition("+")
            name, _, revision = (base, "", "") if find_local_folder(base) else base.partition("@")
            value = {"name": name + plus + adapter, "alias": alias, "revision": revision or None}
        if not isinstance(value, dict):
            return value
        name = str(value.get("name", ""))
        base, plus, adapter = (name, "", "") if find_local_folder(name) else name.partition("+")
        # Absolute: replicas may have another working directory.
        folders = [n != "demo" and find_local_folder(n) for n in (base, adapter)]
        value = {**value, "name": f"{folders[0] or base}{plus}{folders[1] or adapter}"}
        short = [f.name if f else n for f, n in zip(folders, (base, adapter), strict=True)]
        return {**value, "alias": value.get("alias") or plus.join(short)}

    @field_validator("chat_template", "judge_template", "calibration")
    @classmethod
    def _resolve_path(cls, path: str | None) -> str | None:
        return path and str(Path(path).expanduser().resolve())

    @field_validator("template_date")
    @classmethod
    def _check_template_date(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                read_date(text)
            except ModelLoadError as error:
                raise ValueError(error.detail) from None
        return text

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("the model's name is empty; give `demo`, a folder or a hub id")
        return name

    @model_validator(mode="after")
    def _check_consistency(self) -> ModelSettings:
        try:
            self.to_model_config()
        except ModelLoadError as error:
            raise ValueError(error.detail) from None
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is less than num_replicas {self.num_replicas}"
            )
        if (self.num_gpus or 0) > 1 and self.num_gpus != self.num_devices:
            raise ValueError(
                f"num_gpus {self.num_gpus} is more than 1 and not a whole number; give a replica "
                "either a fraction of one GPU or a whole number of them"
            )
        if self.num_gpus == 0 and self.device not in ("auto", "cpu"):
            raise ValueError(
                f"num_gpus 0 means the CPU, and device is {self.device!r}; leave one of them out"
            )
        return self

    @property
    def num_devices(self) -> int:
        """Number of devices over which a replica's layers are spread."""
        return max(1, int(self.num_gpus or 1))

    @property
    def is_on_hub(self) -> bool:
        """Whether the model must be fetched: it is neither the embedded model nor a folder."""
        names = (name for name in split_name(self.name) if name is not None)
        return any(name != "demo" and find_local_folder(name) is None for name in names)

    def to_model_config(self) -> ModelConfig:
        """Return the options with which the engine loads the model."""
        names = (field.name for field in fields(ModelConfig))
        options = {name: getattr(self, name) for name in names if name in type(self).model_fields}
        options["device"] = "cpu" if self.num_gpus == 0 else self.device
        return ModelConfig(**options, num_devices=self.num_devices, catalog_name=self.alias)

    @property
    def weights_key(self) -> str:
        """Key of the weights that the settings name; a reload lasts until this changes."""
        return json.dumps([self.name, self.revision, self.version])

    def with_weights(
        self, name: str, revision: str | None, version: str | None = None
    ) -> ModelSettings:
        """Return the settings of the same model with other weights."""
        return self.model_copy(update={"name": name, "revision": revision, "version": version})

    def to_batch_config(self) -> BatchConfig:
        """Return the options with which the engine forms batches."""
        sizes = (self.prefix_cache_bytes, self.vision_cache_bytes)
        return BatchConfig(
            self.max_batch_tokens, *(None if size == "auto" else size for size in sizes)
        )
