"""The one settings class of the service, and its only reader of the environment.

Values come, first wins, from arguments (command line, Serve YAML `args`), from `SKYREWARD_*`
variables, then from the defaults here. An unknown name or a bad value stops the start. Nothing
changes after construction; `/info` reports what each `auto` became.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rm_core.errors import ModelLoadError
from rm_core.inputs.chat_formats import ChatFormatName
from serve.config.model_settings import ModelSettings

PolicyTemplate: TypeAlias = Literal["none"] | ChatFormatName


REMOVED_SETTINGS = {
    "max_request_characters": "the limit is 268,435,456 now; split larger requests",
    "max_request_tokens": "the limit is 100,000,000 now; split larger requests",
    "max_unbroken_characters": "the limit is the default of before, 524,288 or 8 for each token of "
    "the model's limit; shorten such texts",
}
"""What replaces each setting that earlier versions had."""


class Settings(BaseSettings):
    """Settings of the service. The text below each is its description in the documentation."""

    model_config = SettingsConfigDict(
        env_prefix="SKYREWARD_",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # a key may be in it
    )

    models: Annotated[tuple[ModelSettings, ...], NoDecode] = Field(
        default=(ModelSettings(name="demo", alias="demo"),), min_length=1
    )
    """Models to serve."""
    host: str = "127.0.0.1"
    """Address to listen on. No effect under `serve run`, where Serve's `http_options` decide."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on. No effect under `serve run`, where Serve's `http_options` decide."""
    ingress: Literal["auto", "haproxy", "proxy"] = "auto"
    """Process that listens on Ray: `haproxy`, or `proxy` for Serve's own proxy. `auto` uses HAProxy
    where its wheel runs."""
    insecure_ray: bool = False
    """Start Ray without a token where RAY_AUTH_MODE asks for that (--insecure-ray). Anyone who
    reaches Ray's ports can then run code."""
    num_gateways: PositiveInt = 1
    """Number of processes that answer HTTP. Use at least two, so that one may die."""
    tls_cert_file: str | None = None
    """PEM file with certificates. Together with `tls_key_file` it turns on HTTPS (--tls-cert)."""
    tls_key_file: str | None = None
    """PEM file with the key of the certificate (--tls-key)."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Host names that requests may be addressed to (header Host), in addition to `host` and the
    names of this machine; `*` allows all. If empty, every host is allowed, except that without keys
    on a loopback `host` only the names of this machine are. Other requests get 421."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins whose pages may call the service; `*` allows all. None by default."""
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """API keys, one of which every request must carry. If there are none, here or in
    `api_keys_file`, the service is open to all."""
    api_keys_file: str | None = None
    """File with more API keys, one a line; `#` starts a comment (--api-keys)."""
    admin_api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """API keys that may put models to sleep, wake them and reload them, and score as well. If there
    are none, here or in `admin_api_keys_file`, only clients on this machine may do that."""
    admin_api_keys_file: str | None = None
    """File with more of `admin_api_keys`, one a line; `#` starts a comment (--admin-api-keys)."""
    request_timeout_s: PositiveFloat = 600
    """Default deadline of a request in seconds, used when the client sends no
    X-Request-Timeout-Seconds header."""
    max_request_timeout_s: float = Field(default=3_600, gt=0, le=30 * 24 * 3600)
    """Longest deadline in seconds that a client may ask for, and longest time to finish accepted
    work at shutdown."""
    body_timeout_s: PositiveFloat = 60
    """Maximum time in seconds for a body to arrive; slower bodies get 408."""
    min_body_rate: NonNegativeInt = 64 * 2**10
    """Minimum rate of a body in bytes a second, on average after its first 5 s; slower bodies get
    408. 0 turns the limit off."""
    answer_timeout_s: PositiveFloat = 60
    """Maximum time in seconds in which a client takes less than 64 KiB of its response while more
    waits; then its connection is closed (with --local only)."""
    max_body_bytes: PositiveInt = 32 * 2**20
    """Maximum size of a body in bytes; larger bodies get 413."""
    max_buffered_bytes: PositiveInt = 256 * 2**20
    """Maximum size in bytes of all bodies held at one time; further ones get 503. One key may hold
    as much as then remains for the others, so alone half of it; beyond that it gets 429."""
    max_conversations: PositiveInt = 20_000
    """Maximum number of conversations in a request; a pair is two. A body may have 20 lists and
    objects for each, and 100 for each of `max_messages`."""
    max_messages: PositiveInt = 1_000
    """Maximum number of messages in a conversation."""
    max_requests: PositiveInt = 1_024
    """Maximum number of concurrent scoring requests in each gateway; further ones get 503."""
    max_requests_per_key: PositiveInt = 512
    """Maximum number of concurrent scoring requests with one key, where there are keys; further
    ones get 429."""
    max_queued_tokens: PositiveInt = 2_000_000
    """Maximum number of queued tokens for one model in each gateway, shared equally among the keys
    that have tokens queued; a key above its share gets 503."""
    max_request_images: PositiveInt = 256
    """Maximum number of different images in a request; one that several conversations share counts
    once."""
    max_queued_image_bytes: PositiveInt = 2**30
    """Maximum memory in bytes of decoded images that wait for one model in each gateway, shared
    equally among the keys that have any. Requests wait for room before their images are decoded; a
    key that has none may always decode those of two conversations."""
    cache_scope: Literal["key", "service"] = "key"
    """Requests that share cached rewards and common computation: those with one API key (`key`), or
    all of them (`service`). Without keys all requests count as those of one client."""
    policy_template: PolicyTemplate = "none"
    """Chat template of the policy whose rendered texts OpenRLHF and slime send. They are read back
    into turns and rendered again. `none`: the texts must be in the model's own chat template."""
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """Level of the log. At INFO there is one line a request."""
    log_format: Literal["text", "json"] = "text"
    """Format of the log: `text`, or `json` for one object a line."""
    otlp_endpoint: str | None = None
    """OpenTelemetry collector (OTLP over HTTP) for traces, such as http://127.0.0.1:4318."""

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_names(cls, values: object) -> object:
        prefix = cls.model_config["env_prefix"]
        known = {prefix + name.upper() for name in cls.model_fields}
        for variable in sorted(os.environ):
            name = variable.upper()
            # Trainers on the same machine have their own settings: `serve.client.settings`.
            is_client_setting = name.startswith(prefix + "CLIENT_")
            if name.startswith(prefix) and name not in known and not is_client_setting:
                reject_removed(name.removeprefix(prefix).lower())
                raise ValueError(
                    f"the environment has {variable}, which is not a setting; the settings are: "
                    + ", ".join(sorted(known))
                )
        for name in values if isinstance(values, dict) else ():
            reject_removed(name)
        return values

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        text = value.strip()
        return json.loads(text) if text.startswith("[") else [t.strip() for t in text.split(",")]

    @field_validator("api_keys", "admin_api_keys", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        return value.replace(",", " ").split() if isinstance(value, str) else value

    @field_validator("api_keys_file", "admin_api_keys_file", "tls_cert_file", "tls_key_file")
    @classmethod
    def _resolve_path(cls, path: str | None) -> str | None:
        return path and str(Path(path).expanduser().resolve())

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not re.fullmatch(r"\*|\[[0-9a-fA-F:.]+\]|[^/:@\s*\[\]]+", host):
                raise ValueError(
                    f"{host!r} is not a host name; write it without scheme, port and path, such as "
                    "lab.example.org or [::1], or * for every host"
                )
        return hosts

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            # Exactly as browsers send it: they never send `https://host` with a slash at its end.
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@]+", origin):
                raise ValueError(
                    f"{origin!r} is not an origin; write SCHEME://HOST or SCHEME://HOST:PORT "
                    "without a path, such as https://lab.example.org, or * for every page"
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
                f"{self.max_body_bytes}: the largest allowed body would never be accepted"
            )
        return self

    @field_validator("models", mode="after")
    @classmethod
    def _check_aliases(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        aliases = [model.alias for model in models]
        duplicates = sorted({alias for alias in aliases if aliases.count(alias) > 1})
        if duplicates:
            raise ValueError(
                f"two models are called {duplicates[0]!r}; give one of them another name: "
                "ALIAS=NAME"
            )
        return models

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Return settings from arguments, the environment and the defaults.

        Raises:
            ModelLoadError: an unknown name or a bad value; the message has a line for each.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            raise ModelLoadError(format_validation_error(error)) from None
        except ValueError as error:
            raise ModelLoadError(f"settings: {error}") from None


def reject_removed(name: str) -> None:
    """Refuse a setting that earlier versions had; the message says what replaces it."""
    if name in REMOVED_SETTINGS:
        raise ValueError(f"the setting `{name}` was removed: {REMOVED_SETTINGS[name]}")


def read_settings_file(path: Path) -> dict[str, Any]:
    """Read settings by name from a YAML file.

    Raises:
        ModelLoadError: the file is unreadable, or does not map names to values.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:  # its text quotes the line, which may hold a key
        location = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ModelLoadError(
            f"the settings file {path} cannot be read: {error.problem}{location}"
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
    """Describe what is wrong with the settings, one problem a line."""
    lines = [
        f"{'.'.join(str(key) for key in details['loc']) or 'settings'}: {details['msg']}"
        + (f" (came: {details['input']!r})" if _is_safe_to_show(details) else "")
        for details in error.errors()
    ]
    return "bad settings\n  " + "\n  ".join(lines)


def _is_safe_to_show(details: ErrorDetails) -> bool:
    # The value of an unknown setting is hidden: its name may be a misspelling of `api_keys`.
    hidden = details["type"] in ("missing", "extra_forbidden") or bool(
        {"api_keys", "admin_api_keys"} & set(details["loc"])
    )
    return bool(details["loc"]) and not hidden
