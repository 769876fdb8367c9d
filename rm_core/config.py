"""Options of a model and of its batches: frozen dataclasses, validated on construction."""

from __future__ import annotations

import contextlib
import datetime
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

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ModelLoadError("the model's name is empty; give `demo`, a folder or a hub id")
        for field, value, allowed in (
            ("dtype", self.dtype, get_args(DType)),
            ("attention", self.attention, get_args(Attention)),
            ("quantization", self.quantization, get_args(Quantization)),
            ("tokenizer_mode", self.tokenizer_mode, get_args(TokenizerMode)),
            ("compile", self.compile, (True, False, "auto")),
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
    """Size of batches, and of the prefix cache.

    Attributes:
        max_batch_tokens: maximum number of tokens in a batch, with shared prefixes counted once. A
            longer conversation forms a batch alone. None derives the limit from the device's free
            memory and the shape of the model.
        prefix_cache_bytes: memory of keys and values that are kept between batches, so that a
            prompt which recurs is not computed again; 0 for none. None derives the size from the
            memory that is free once the model is loaded.

    Raises:
        ModelLoadError: a value is not allowed.
    """

    max_batch_tokens: int | None = None
    prefix_cache_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.max_batch_tokens is not None and self.max_batch_tokens < 1:
            raise ModelLoadError(f"max_batch_tokens is {self.max_batch_tokens}; give at least 1")
        if self.prefix_cache_bytes is not None and self.prefix_cache_bytes < 0:
            raise ModelLoadError(
                f"prefix_cache_bytes is {self.prefix_cache_bytes}; give 0 for no cache, a number "
                "of bytes, or leave it unset for an automatic size"
            )
