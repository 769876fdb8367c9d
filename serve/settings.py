"""The one settings class of the service, and the only reader of the environment.

Values come, first wins, from arguments (command line, Serve YAML `args`), from `SKYREWARD_*`
variables, then from the defaults here. An unknown name or a bad value stops the start. Nothing
changes after construction; what `auto` became is told by `/info`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rm_core.checkpoint import local_folder
from rm_core.config import Attention, BatchConfig, DType, ModelConfig, Quantization
from rm_core.errors import ModelLoadError


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
    deterministic: bool = Field(
        default=False, description="the same reward to the last bit in any batch; slower"
    )
    quantization: Quantization = Field(
        default="none", description="of the linear layers, by torchao; lossy"
    )
    compile: bool = Field(default=False, description="torch.compile of the decoder layers")
    max_batch_tokens: int | None = Field(
        default=None, ge=1, description="most tokens of one batch; default: by free memory"
    )
    cache_bytes: int = Field(
        default=256 * 2**20,
        ge=0,
        description="memory for rewards already computed, shared by all replicas; 0: none is kept",
    )
    num_replicas: int = Field(default=1, ge=1, description="copies of the model, one device each")
    num_gpus: float | None = Field(
        default=None, ge=0, description="GPUs of a replica; default: 1 if the cluster has any"
    )
    cpu_threads: int | None = Field(
        default=None, ge=1, description="torch threads of a CPU replica; default: cores / replicas"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, value: object) -> object:
        if isinstance(value, str):
            # A folder may have `=` or `@` in its own name.
            has_alias = "=" in value and not local_folder(value)
            alias, rest = value.split("=", 1) if has_alias else ("", value)
            name, _, revision = (rest, "", "") if local_folder(rest) else rest.partition("@")
            value = {"name": name, "alias": alias, "revision": revision or None}
        if not isinstance(value, dict):
            return value
        name = str(value.get("name", ""))
        if name != "demo" and (folder := local_folder(name)):
            # Absolute: replicas may have another working directory.
            value = {**value, "name": str(folder)}
            name = folder.name
        return {**value, "alias": value.get("alias") or name}

    @field_validator("chat_template")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return path and str(Path(path).expanduser().resolve())

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("the model's name is empty; give `demo`, a folder or a hub id")
        return name

    @property
    def on_hub(self) -> bool:
        """Whether it has to be fetched: neither the embedded model nor a folder."""
        return self.name != "demo" and local_folder(self.name) is None

    def model_loading(self) -> ModelConfig:
        """What the engine needs to load it."""
        return ModelConfig(
            name=self.name,
            revision=self.revision,
            dtype=self.dtype,
            attention=self.attention,
            device=self.device,
            max_length=self.max_length,
            chat_template=self.chat_template,
            known_as=self.alias,
            deterministic=self.deterministic,
            quantization=self.quantization,
            compile=self.compile,
        )

    def batching(self) -> BatchConfig:
        """How the engine fills batches."""
        return BatchConfig(max_batch_tokens=self.max_batch_tokens)


class Settings(BaseSettings):
    """Everything that can be chosen about a service."""

    model_config = SettingsConfigDict(env_prefix="SKYREWARD_", frozen=True, extra="forbid")

    models: Annotated[tuple[ModelSettings, ...], NoDecode] = Field(
        default=(ModelSettings(name="demo", alias="demo"),),
        min_length=1,
        description="what is served",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=1, le=65535, description="port to listen on")
    log_level: str = Field(
        default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="of the service's log"
    )

    @model_validator(mode="before")
    @classmethod
    def _known_variables(cls, values: object) -> object:
        prefix = cls.model_config["env_prefix"]
        known = {prefix + name.upper() for name in cls.model_fields}
        for variable in sorted(os.environ):
            if variable.upper().startswith(prefix) and variable.upper() not in known:
                raise ValueError(
                    f"the environment has {variable}, which is no setting; there are: "
                    + ", ".join(sorted(known))
                )
        return values

    @field_validator("models", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        text = value.strip()
        return json.loads(text) if text.startswith("[") else [t.strip() for t in text.split(",")]

    @field_validator("models", mode="after")
    @classmethod
    def _distinct(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        aliases = [model.alias for model in models]
        twice = sorted({alias for alias in aliases if aliases.count(alias) > 1})
        if twice:
            raise ValueError(
                f"two models are called {twice[0]!r}; give one another name: ALIAS=NAME"
            )
        return models

    @classmethod
    def of(cls, **chosen: Any) -> Settings:
        """Settings from arguments, the environment and the defaults.

        Raises:
            ModelLoadError: an unknown name or a bad value, told one a line.
        """
        try:
            return cls(**chosen)
        except ValidationError as error:
            raise ModelLoadError(explain(error)) from None
        except ValueError as error:
            raise ModelLoadError(f"settings: {error}") from None


def read_settings_file(path: Path) -> dict[str, Any]:
    """Settings by name from a YAML file.

    Raises:
        ModelLoadError: unreadable, or no mapping of settings.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ModelLoadError(f"the settings file {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(
            f"the settings file {path} must map names to values, like `port: 8000`"
        )
    if "applications" in content:
        raise ModelLoadError(
            f"{path} is a Ray Serve config, not a settings file; start it with: serve run {path}"
        )
    return content


def explain(error: ValidationError) -> str:
    """What is wrong with the settings, one finding a line."""
    lines = [
        f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']}"
        + (f" (came: {item['input']!r})" if item["loc"] and item["type"] != "missing" else "")
        for item in error.errors()
    ]
    return "bad settings\n  " + "\n  ".join(lines)
