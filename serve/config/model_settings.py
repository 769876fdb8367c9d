"""Settings of one served model. Those of the service are in `serve.config.settings`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rm_core.config import Attention, BatchConfig, DType, ModelConfig, Quantization, read_date
from rm_core.errors import ModelLoadError
from rm_core.model.checkpoint import find_local_folder


class ModelSettings(BaseModel):
    """One served model. As a string: `NAME`, `ALIAS=NAME`, either with `@REVISION`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="`demo`, a local folder, or a hub id (ORG/NAME)")
    alias: str = Field(default="", description="name in requests; default: NAME's last part")
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    dtype: DType = Field(default="auto", description="auto: bfloat16 on CUDA, float32 on CPU")
    attention: Attention = Field(default="auto", description="auto: chosen, with its reason")
    device: str = Field(default="auto", description="auto: CUDA where there is one, else CPU")
    max_length: int | None = Field(
        default=None, ge=1, description="most tokens of a conversation; default: the model's limit"
    )
    chat_template: str | None = Field(
        default=None, description="Jinja file that replaces or supplies the chat template"
    )
    template_date: str | None = Field(
        default=None,
        description="day (YYYY-MM-DD) that the chat template gets as today's; "
        "default: the day on which the service starts",
    )
    deterministic: bool = Field(
        default=False, description="the same reward to the last bit in any batch; slower"
    )
    quantization: Quantization = Field(
        default="none", description="of the linear layers, by torchao; lossy"
    )
    compile: bool = Field(default=False, description="torch.compile of the decoder layers")
    self_check: bool = Field(
        default=True,
        description="Compare the engine with plain transformers at load, and refuse a model whose "
        "rewards differ by more than rounding.",
    )
    max_batch_tokens: int | None = Field(
        default=None, ge=1, description="most tokens of one batch; default: by free memory"
    )
    cache_bytes: int = Field(
        default=256 * 2**20,
        ge=0,
        description="memory for rewards already computed, shared by all replicas; 0: none is kept",
    )
    num_replicas: int = Field(default=1, ge=1, description="copies of the model, one device each")
    max_replicas: int | None = Field(
        default=None, ge=1, description="copies under load, by queued tokens; default: num_replicas"
    )
    target_queued_tokens: int = Field(
        default=65_536, ge=1, description="waiting tokens for which one copy is enough"
    )
    stuck_after_s: float | None = Field(
        default=None,
        gt=0,
        description="a batch that takes longer makes its replica unhealthy; default: 20 times what "
        "is expected of it, and at least 120",
    )
    num_gpus: float | None = Field(
        default=None,
        ge=0,
        description="GPUs of a replica, over which the layers are spread if there are several; "
        "0: the replica runs on the CPU; default: 1 if the cluster has any",
    )
    cpu_threads: int | None = Field(
        default=None, ge=1, description="torch threads of a CPU replica; default: cores / replicas"
    )

    @model_validator(mode="before")
    @classmethod
    def _parse_short_form(cls, value: object) -> object:
        if isinstance(value, str):
            # A folder may have `=` or `@` in its own name.
            has_alias = "=" in value and not find_local_folder(value)
            alias, rest = value.split("=", 1) if has_alias else ("", value)
            name, _, revision = (rest, "", "") if find_local_folder(rest) else rest.partition("@")
            value = {"name": name, "alias": alias, "revision": revision or None}
        if not isinstance(value, dict):
            return value
        name = str(value.get("name", ""))
        if name != "demo" and (folder := find_local_folder(name)):
            # Absolute: replicas may have another working directory.
            value = {**value, "name": str(folder)}
            name = folder.name
        return {**value, "alias": value.get("alias") or name}

    @field_validator("chat_template")
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
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is less than num_replicas {self.num_replicas}"
            )
        if (self.num_gpus or 0) > 1 and self.num_gpus != self.num_devices:
            raise ValueError(
                f"num_gpus {self.num_gpus} is more than one and no whole number; a replica shares "
                "one GPU with others, or has several for itself"
            )
        if self.num_gpus == 0 and self.device not in ("auto", "cpu"):
            raise ValueError(
                f"num_gpus 0 means the CPU, and device is {self.device!r}; leave one of them out"
            )
        return self

    @property
    def num_devices(self) -> int:
        """Over how many devices a replica's layers are spread."""
        return max(1, int(self.num_gpus or 1))

    @property
    def is_on_hub(self) -> bool:
        """Whether it has to be fetched: neither the embedded model nor a folder."""
        return self.name != "demo" and find_local_folder(self.name) is None

    def to_model_config(self) -> ModelConfig:
        """What the engine needs to load it."""
        return ModelConfig(
            name=self.name,
            revision=self.revision,
            dtype=self.dtype,
            attention=self.attention,
            device="cpu" if self.num_gpus == 0 else self.device,
            num_devices=self.num_devices,
            max_length=self.max_length,
            chat_template=self.chat_template,
            template_date=self.template_date,
            catalog_name=self.alias,
            deterministic=self.deterministic,
            quantization=self.quantization,
            compile=self.compile,
            self_check=self.self_check,
        )

    def to_batch_config(self) -> BatchConfig:
        """How the engine fills batches."""
        return BatchConfig(max_batch_tokens=self.max_batch_tokens)
