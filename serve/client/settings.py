"""Where trainers that only take the path of a function find the service: `SKYREWARD_CLIENT_*`.

Beside `serve.config.settings` the only reader of the environment. Clients that are made in code are
told everything by arguments and read nothing.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rm_core import ChatFormatName, Truncation
from serve.client.bodies import MAX_ANSWER_BYTES
from serve.client.errors import ServiceError

PolicyTemplate: TypeAlias = Literal["none"] | ChatFormatName


class ClientSettings(BaseSettings):
    """Everything that can be chosen about the clients of trainers' reward functions."""

    model_config = SettingsConfigDict(
        env_prefix="SKYREWARD_CLIENT_",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,  # a key may be in it
    )

    urls: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("http://127.0.0.1:8000",),
        min_length=1,
        repr=False,  # a password may be in one
        description="addresses of services that serve the same model, with commas between",
    )
    model: str | None = Field(default=None, description="which of their models")
    api_key: SecretStr | None = Field(default=None, description="of those services")
    retry_s: float = Field(
        default=300, ge=0, description="seconds from a first failure in which it is tried again"
    )
    timeout_s: float | None = Field(default=None, gt=0, description="deadline of each try")
    max_answer_bytes: int = Field(
        default=MAX_ANSWER_BYTES,
        ge=1,
        description="maximum size of an answer of the service in bytes, uncompressed",
    )
    num_posts: int = Field(default=4, ge=1, description="posts at a time, to each address")
    truncation: Truncation = Field(
        default="error", description="what to do with conversations that are too long"
    )
    policy_template: PolicyTemplate = Field(
        default="none", description="how the policy's chat template writes prompts that are text"
    )
    failed_reward: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="for a conversation that cannot be scored; none: an error ends the run",
    )
    prompt_field: str = Field(
        default="question", description="of verl's `extra_info`, where the prompt stands"
    )

    @field_validator("urls", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value

    @classmethod
    def load(cls, **overrides: Any) -> ClientSettings:
        """Settings from arguments, the environment and the defaults.

        Raises:
            ServiceError: an unknown name or a bad value.
        """
        prefix = cls.model_config["env_prefix"]
        known = {prefix + name.upper() for name in cls.model_fields}
        unknown = sorted(v for v in os.environ if v.startswith(prefix) and v not in known)
        if unknown:
            raise ServiceError(
                f"the environment has {unknown[0]}, which is no setting; there are: "
                + ", ".join(sorted(known))
            )
        try:
            return cls(**overrides)
        except ValidationError as error:
            told = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ServiceError(f"bad settings of the client: {'; '.join(told)}") from None
