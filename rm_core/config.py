"""Options of a model and of its batches: frozen dataclasses, validated on construction."""

from __future__ import annotations

import contextlib
import datetime
import math
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from rm_core.errors import ModelLoadError

DType: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
Attention: TypeAlias = Literal[
    "auto", "eager", "sdpa", "varlen", "flex", "flash_attention_2", "flash_attention_4"
]
Compile: TypeAlias = bool | Literal["auto"]

TokenizerMode: TypeAlias = Literal["auto", "tokenizers"]
Quantization: TypeAlias = Literal["none", "int8", "int8-weights", "fp8", "fp8-weights"]
Kind: TypeAlias = Literal["classifier", "step", "judge"]
"""One reward at the last token, a value at every step, or the probability of a verdict."""
StepFormat: TypeAlias = Literal[
    "skywork", "qwen-math", "math-shepherd", "rlhflow", "skywork-prmbench"
]
"""How a process reward model's authors divide a solution into steps and mark them."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which checkpoint to load, and how.

    Attributes:
        name: `demo`, a local folder, or a hub id (`ORG/NAME`).
        revision: branch, tag or commit of a hub repository; None for its main branch.
        dtype: dtype of the decoder; `auto` is bfloat16 on CUDA and float32 on CPU.
        attention: attention backend; with `auto`, `rm_core.attention` selects one and gives the
            reason.
        device: a torch device, or `auto` for the first CUDA device if there is one, else the CPU.
        num_devices: number of CUDA devices over which the layers are distributed, for models that
            do not fit on one device. The first devices are used.
        max_length: maximum number of tokens of one conversation; None for the checkpoint's limit.
        chat_template: path of a Jinja file that replaces the checkpoint's chat template, or
            provides a missing one.
        catalog_name: another name to look up in the catalog, for folders whose name does not
            identify the checkpoint.
        template_date: day (ISO 8601, such as 2026-01-31) that the chat template gets as today's
            date; None for the day of loading. No effect on templates that never read the date.
        deterministic: give a conversation a bit-identical reward alone, in any batch and in any
            order. Slower.
        quantization: quantization of the decoder's linear layers by torchao. Lossy, so never
            automatic.
        compile: whether to compile the decoder layers with `torch.compile`. The first batch waits
            for the compiler. `auto` compiles on one CUDA device, unless `deterministic` is on or
            the compiler does not work.
        self_check: compare the engine with plain transformers at load time, and refuse a model
            whose rewards differ by more than rounding.
        tokenizer_mode: library that tokenizes; `auto` is fastokens where it gives the ids of
            `tokenizers`.
        tokenizer_check_interval: number of texts of which one is tokenized by `tokenizers` as well
            if fastokens is in use; 0 for none. After a difference, `tokenizers` is used.
        kind: what the model is served as; `auto` takes it from the catalog and config.json, see
            `rm_core.kinds`.
        step_format: how a step model's solutions are divided into steps; `auto` as for `kind`.
        label: index of the label that is the reward, for a classifier with several labels.
        label_weights: weight of each label in the reward, for a classifier with several labels.
        allow_bin: read weights from pickle files (`pytorch_model*.bin`), also of checkpoints that
            the catalog does not list as published in this form. Only tensors are read; no code of
            the file runs.
        lm_head_tokens: ids of one or two rows of the language model's head that are the reward's
            head: the logit of the first token, minus the logit of the second if there is one.
        judge_template: path of a file that replaces the prompt of a judge.
        verdict_prefix: text at the start of a judge's reply, before the label.
        verdict_labels: labels with which a judge names the first and the second answer.
        appended_token: token that is appended to every conversation, and at which a classifier is
            read; None for what the architecture says, usually no token.
        min_pixels: smaller images are enlarged to so many pixels; None for what the checkpoint's
            preprocessor_config.json says.
        max_pixels: larger images are reduced to so many pixels; None as for `min_pixels`.
        max_image_bytes: maximum size of an image's file in bytes.
        max_image_pixels: maximum number of pixels of an image before it is resized.
        max_images: maximum number of images in a conversation.
        version: name of the weights, part of the fingerprint; None for no name.

    Raises:
        ModelLoadError: a value is not allowed.
    """

    name: str
    revision: str | None = None
    dtype: DType = "auto"
    attention: Attention = "auto"
    device: str = "auto"
    num_devices: int = 1
    max_length: int | None = None
    chat_template: str | None = None
    catalog_name: str | None = None
    template_date: str | None = None
    deterministic: bool = False
    quantization: Quantization = "none"
    compile: Compile = "auto"
    self_check: bool = True
    tokenizer_mode: TokenizerMode = "auto"
    tokenizer_check_interval: int = 1_000
    kind: Kind | Literal["auto"] = "auto"
    step_format: StepFormat | Literal["auto"] = "auto"
    label: int | None = None
    label_weights: tuple[float, ...] | None = None
    allow_bin: bool = False
    lm_head_tokens: tuple[int, ...] | None = None
    judge_template: str | None = None
    verdict_prefix: str = "[["
    verdict_labels: tuple[str, str] = ("A", "B")
    appended_token: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_image_bytes: int = 10 * 2**20
    max_image_pixels: int = 4_096 * 4_096
    max_images: int = 16
    version: str | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ModelLoadError("the model's name is empty; give `demo`, a folder or a hub id")
        for field, value, allowed in (
            ("dtype", self.dtype, get_args(DType)),
            ("attention", self.attention, get_args(Attention)),
            ("quantization", self.quantization, get_args(Quantization)),
            ("tokenizer_mode", self.tokenizer_mode, get_args(TokenizerMode)),
            ("compile", self.compile, (True, False, "auto")),
            ("kind", self.kind, ("auto", *get_args(Kind))),
            ("step_format", self.step_format, ("auto", *get_args(StepFormat))),
        ):
            if value not in allowed:
                raise ModelLoadError(
                    f"{field} is {value!r}; allowed: {', '.join(map(str, allowed))}"
                )
        if self.num_devices < 1:
            raise ModelLoadError(f"num_devices is {self.num_devices}; give at least 1")
        if self.num_devices > 1 and self.compile is True:
            raise ModelLoadError(
                f"`compile` requires a model on one device, but num_devices is {self.num_devices}; "
                "remove one of the two settings"
            )
        if self.max_length is not None and self.max_length < 1:
            raise ModelLoadError(
                f"max_length is {self.max_length}; give at least 1, or leave it unset"
            )
        if self.tokenizer_check_interval < 0:
            raise ModelLoadError(
                f"tokenizer_check_interval is {self.tokenizer_check_interval}; give a number of "
                "texts, or 0 to compare none"
            )
        if self.template_date is not None:
            read_date(self.template_date)
        self._check_kind()
        self._check_images()

    def _check_images(self) -> None:
        for name in ("min_pixels", "max_pixels", "max_image_bytes", "max_image_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ModelLoadError(f"{name} is {value}; give at least 1, or leave it unset")
        if self.max_images < 0:
            raise ModelLoadError(f"max_images is {self.max_images}; give 0 for no images, or more")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ModelLoadError(
                f"min_pixels is {self.min_pixels} and max_pixels is {self.max_pixels}; lower the "
                "first or raise the second"
            )

    def _check_kind(self) -> None:
        if self.step_format != "auto" and self.kind not in ("auto", "step"):
            raise ModelLoadError(
                f"step_format is {self.step_format!r}, but kind is {self.kind!r}; only a step "
                "model has steps: remove one of the two settings"
            )
        if self.appended_token is not None and self.kind not in ("auto", "classifier"):
            raise ModelLoadError(
                f"appended_token is {self.appended_token!r}, but kind is {self.kind!r}; only a "
                "classifier is read at an appended token: remove one of the two settings"
            )
        heads = {
            "label": self.label,
            "label_weights": self.label_weights,
            "lm_head_tokens": self.lm_head_tokens,
        }
        given = [name for name, value in heads.items() if value is not None]
        if len(given) > 1:
            raise ModelLoadError(
                f"{' and '.join(given)} are set; they select different heads: keep one of them"
            )
        if given and self.kind not in ("auto", "classifier"):
            raise ModelLoadError(
                f"{given[0]} is set, but kind is {self.kind!r}; only a classifier has a choice of "
                "heads: remove one of the two settings"
            )
        if self.label is not None and self.label < 0:
            raise ModelLoadError(f"label is {self.label}; give the index of a label, from 0")
        if self.label_weights is not None and not (
            any(self.label_weights) and all(map(math.isfinite, self.label_weights))
        ):
            raise ModelLoadError(
                f"label_weights is {list(self.label_weights)}; give one finite number for each "
                "label, not all 0"
            )
        tokens = self.lm_head_tokens
        if tokens is not None and not (
            len(set(tokens)) == len(tokens) in (1, 2) and min(tokens) >= 0
        ):
            raise ModelLoadError(
                f"lm_head_tokens is {list(tokens)}; give the id of one token, or of two tokens "
                "whose logits are subtracted"
            )
        if len(set(self.verdict_labels)) != 2 or not all(map(str.strip, self.verdict_labels)):
            raise ModelLoadError(
                f"verdict_labels is {list(self.verdict_labels)}; give two different texts"
            )


def read_date(text: str) -> datetime.date:
    """Parse the value of `template_date`.

    Raises:
        ModelLoadError: the text is not a date of the form YYYY-MM-DD.
    """
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        with contextlib.suppress(ValueError):
            return datetime.date.fromisoformat(text)
    raise ModelLoadError(f"template_date is {text!r}; give a day as YYYY-MM-DD, such as 2026-01-31")


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """Size of batches, and of the caches on the device.

    Attributes:
        max_batch_tokens: maximum number of tokens in a batch, with shared prefixes counted once. A
            longer conversation forms a batch alone. None derives the limit from the device's free
            memory and the shape of the model.
        prefix_cache_bytes: memory of keys and values that are kept between batches, so that a
            prompt which recurs is not computed again; 0 for none. None derives the size from the
            memory that is free once the model is loaded.
        vision_cache_bytes: memory of the features of images that are kept between batches; 0 for
            none. None derives the size from the free memory.

    Raises:
        ModelLoadError: a value is not allowed.
    """

    max_batch_tokens: int | None = None
    prefix_cache_bytes: int | None = None
    vision_cache_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.max_batch_tokens is not None and self.max_batch_tokens < 1:
            raise ModelLoadError(f"max_batch_tokens is {self.max_batch_tokens}; give at least 1")
        for name in ("prefix_cache_bytes", "vision_cache_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ModelLoadError(
                    f"{name} is {value}; give 0 for no cache, a number of bytes, or leave it unset "
                    "for an automatic size"
                )
