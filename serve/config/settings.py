"""The one settings class of the service, and its only reader of the environment.

Values come, first wins, from arguments (command line, Serve YAML `args`), from `SKYREWARD_*`
variables, then from the defaults here. An unknown name or a bad value stops the start. Nothing
changes after construction; what `auto` became is told by `/info`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rm_core.errors import ModelLoadError
from rm_core.inputs.chat_formats import ChatFormatName
from serve.config.model_settings import ModelSettings

PolicyTemplate: TypeAlias = Literal["none"] | ChatFormatName


class Settings(BaseSettings):
    """Everything that can be chosen about a service."""

    model_config = SettingsConfigDict(
        env_prefix="SKYREWARD_",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,  # a key may be in it
    )

    models: Annotated[tuple[ModelSettings, ...], NoDecode] = Field(
        default=(ModelSettings(name="demo", alias="demo"),),
        min_length=1,
        description="what is served",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=1, le=65535, description="port to listen on")
    ingress: Literal["auto", "haproxy", "proxy"] = Field(
        default="auto",
        description="what listens on Ray: HAProxy, or Serve's own proxy; auto: HAProxy where it "
        "runs",
    )
    insecure_ray: bool = Field(
        default=False,
        description="start a Ray without a token where RAY_AUTH_MODE asks for that: whoever "
        "reaches its ports can run code",
    )
    num_gateways: int = Field(default=1, ge=1, description="processes that speak HTTP")
    tls_cert_file: str | None = Field(default=None, description="PEM certificates; with the key")
    tls_key_file: str | None = Field(default=None, description="PEM key of the certificate")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="host names that requests may be for (header Host), besides `host` and those "
        "of this machine; * for all. Default: all, but without keys on a loopback `host` none",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="origins whose pages may call; none by default"
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), description="keys, one of which every request must bring; none: open to all"
    )
    api_keys_file: str | None = Field(default=None, description="more keys, one a line")
    request_timeout_s: float = Field(
        default=600, gt=0, description="deadline of a request that brings none of its own"
    )
    max_request_timeout_s: float = Field(
        default=3_600,
        gt=0,
        le=30 * 24 * 3600,
        description="longest deadline that a request may bring, and longest that a stop takes",
    )
    body_timeout_s: float = Field(
        default=60, gt=0, description="most time for a body to arrive in full"
    )
    min_body_rate: int = Field(
        default=64 * 2**10,
        ge=0,
        description="least bytes a second of a body, on average after its first 5 s; 0 for none",
    )
    answer_timeout_s: float = Field(
        default=60,
        gt=0,
        description="most time in which a client takes less than 64 KiB of its answer while more "
        "waits (not on Ray)",
    )
    max_body_bytes: int = Field(default=32 * 2**20, ge=1, description="most bytes of a body")
    max_buffered_bytes: int = Field(
        default=256 * 2**20,
        ge=1,
        description="most bytes of all bodies held at one time; more is refused for a while. A "
        "client with a key may hold as many as then remain for others",
    )
    max_conversations: int = Field(
        default=20_000, ge=1, description="most conversations of a request"
    )
    max_messages: int = Field(default=1_000, ge=1, description="most messages of a conversation")
    max_requests: int = Field(
        default=1_024, ge=1, description="most scoring requests at the same time"
    )
    max_requests_per_key: int = Field(
        default=512, ge=1, description="most of them with one key, where there are keys"
    )
    max_queued_tokens: int = Field(
        default=2_000_000,
        ge=1,
        description="tokens that may wait for one model, shared equally among the clients that "
        "have any waiting; a client above its share is refused for a while",
    )
    max_request_characters: int = Field(
        default=256 * 2**20,
        ge=1,
        description="most characters of all conversations of a request, a prompt counted for each "
        "of its answers",
    )
    max_request_tokens: int = Field(
        default=100_000_000, ge=1, description="most tokens of all conversations of a request"
    )
    max_unbroken_characters: int | None = Field(
        default=None,
        ge=131_072,
        description="longest part of a conversation that is tokenized at once because it has no "
        "place where it could be cut without changing a token; None: 524,288, or 8 for each token "
        "of the model's limit if that is more",
    )
    cache_scope: Literal["key", "service"] = Field(
        default="key",
        description="who shares rewards that were computed before: the requests with one API key, "
        "or all; without keys all requests are of one client",
    )
    policy_template: PolicyTemplate = Field(
        default="none",
        description="chat template of the policy whose own texts trainers post (OpenRLHF, slime): "
        "these are read back into turns and rendered anew; none: they must be in the model's own",
    )
    log_level: str = Field(
        default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="of the service's log"
    )
    log_format: Literal["text", "json"] = Field(default="text", description="of the log's lines")
    otlp_endpoint: str | None = Field(
        default=None, description="OpenTelemetry collector (OTLP over HTTP) for traces"
    )

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_variables(cls, values: object) -> object:
        prefix = cls.model_config["env_prefix"]
        known = {prefix + name.upper() for name in cls.model_fields}
        for variable in sorted(os.environ):
            name = variable.upper()
            # Trainers on the same machine have settings of their own: `serve.client.settings`.
            of_clients = name.startswith(prefix + "CLIENT_")
            if name.startswith(prefix) and name not in known and not of_clients:
                raise ValueError(
                    f"the environment has {variable}, which is no setting; there are: "
                    + ", ".join(sorted(known))
                )
        return values

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        text = value.strip()
        return json.loads(text) if text.startswith("[") else [t.strip() for t in text.split(",")]

    @field_validator("api_keys", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        return value.replace(",", " ").split() if isinstance(value, str) else value

    @field_validator("api_keys_file", "tls_cert_file", "tls_key_file")
    @classmethod
    def _resolve_path(cls, path: str | None) -> str | None:
        return path and str(Path(path).expanduser().resolve())

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not re.fullmatch(r"\*|\[[0-9a-fA-F:.]+\]|[^/:@\s*\[\]]+", host):
                raise ValueError(
                    f"{host!r} is no host name; write it without scheme, port and path, such as "
                    "lab.example.org or [::1], or * for every host"
                )
        return hosts

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            # What browsers send, to the letter: `https://host` with a slash at its end never comes.
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@]+", origin):
                raise ValueError(
                    f"{origin!r} is no origin; write SCHEME://HOST or SCHEME://HOST:PORT without a "
                    "path, such as https://lab.example.org, or * for every page"
                )
        return origins

    @model_validator(mode="after")
    def _check_consistency(self) -> Settings:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together; give both or neither")
        if self.max_request_timeout_s < self.request_timeout_s:
            raise ValueError(
                f"max_request_timeout_s {self.max_request_timeout_s:g} is less than "
                f"request_timeout_s {self.request_timeout_s:g}; raise it"
            )
        if self.max_buffered_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_buffered_bytes {self.max_buffered_bytes} is less than max_body_bytes "
                f"{self.max_body_bytes}: the largest allowed body would never be taken"
            )
        return self

    @field_validator("models", mode="after")
    @classmethod
    def _check_aliases(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        aliases = [model.alias for model in models]
        twice = sorted({alias for alias in aliases if aliases.count(alias) > 1})
        if twice:
            raise ValueError(
                f"two models are called {twice[0]!r}; give one another name: ALIAS=NAME"
            )
        return models

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Settings from arguments, the environment and the defaults.

        Raises:
            ModelLoadError: an unknown name or a bad value, told one a line.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            raise ModelLoadError(format_validation_error(error)) from None
        except ValueError as error:
            raise ModelLoadError(f"settings: {error}") from None


def read_settings_file(path: Path) -> dict[str, Any]:
    """Settings by name from a YAML file.

    Raises:
        ModelLoadError: unreadable, or no mapping of settings.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:  # its own text quotes the line, and that may hold a key
        place = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ModelLoadError(
            f"the settings file {path} cannot be read: {error.problem}{place}"
        ) from None
    except UnicodeDecodeError as error:
        raise ModelLoadError(
            f"the settings file {path} is not UTF-8 (byte {error.start}: {error.reason}); save it "
            "as UTF-8"
        ) from None
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


def format_validation_error(error: ValidationError) -> str:
    """What is wrong with the settings, one finding a line."""
    lines = [
        f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']}"
        + (f" (came: {item['input']!r})" if _is_safe_to_show(item) else "")
        for item in error.errors()
    ]
    return "bad settings\n  " + "\n  ".join(lines)


def _is_safe_to_show(finding: ErrorDetails) -> bool:
    # Not of an unknown setting: that may be a misspelt one for keys.
    hidden = finding["type"] in ("missing", "extra_forbidden") or "api_keys" in finding["loc"]
    return bool(finding["loc"]) and not hidden
