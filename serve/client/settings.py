"""Where trainers that only take the path of a function find the service: `SKYREWARD_CLIENT_*`.

Only this module and `serve.config.settings` read the environment. Clients that are created in code
take all options as arguments.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rm_core import Aggregation, ChatFormatName, Truncation
from serve.client.errors import ServiceError
from serve.client.responses import MAX_ANSWER_BYTES

PolicyTemplate: TypeAlias = Literal["none"] | ChatFormatName
OnError: TypeAlias = Literal["raise", "none", "nan", "group"] | FiniteFloat


class ClientSettings(BaseSettings):
    """Settings of the clients that trainers' reward functions use."""

    model_config = SettingsConfigDict(
        env_prefix="SKYREWARD_CLIENT_",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # a key may be in it
    )

    urls: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("http://127.0.0.1:8000",),
        min_length=1,
        repr=False,  # a password may be in one
    )
    """Addresses of services that serve the same model, separated by commas."""
    model: str | None = None
    """Alias of the model. Default: the only model of the service."""
    api_key: SecretStr | None = None
    """API key of those services."""
    retry_s: NonNegativeFloat = 300
    """Seconds after a request's first failure in which it is retried; 0: one try at each
    address."""
    timeout_s: PositiveFloat | None = None
    """Deadline of each try in seconds. Default: the service's own."""
    max_answer_bytes: PositiveInt = MAX_ANSWER_BYTES
    """Maximum size of a response of the service in bytes, uncompressed."""
    num_posts: PositiveInt = 4
    """Maximum number of concurrent requests to each address."""
    truncation: Truncation = "error"
    """What to do with conversations that are too long: `error` fails them, `left` drops tokens of
    the oldest turns, `right` drops tokens at the end."""
    policy_template: PolicyTemplate = "none"
    """Chat template of the policy that wrote prompts which are text."""
    on_error: OnError = "raise"
    """What a conversation that cannot be scored gets: `raise` an error, a number, `none` or `nan`
    for a trainer that leaves out such samples, or `group`: None for all answers to its prompt."""
    failed_reward: FiniteFloat | None = None
    """Old name of `on_error` with a number."""
    models: Annotated[tuple[str, ...], NoDecode] = ()
    """Aliases of several models that score side by side, instead of `model`."""
    combine: Annotated[tuple[tuple[str, FiniteFloat], ...], NoDecode] = ()
    """Weight of each of `models` in the reward, as `a=0.7,b=0.3` or a mapping. Default: 1 each."""
    calibrated: bool = False
    """Whether rewards of `models` are calibrated rewards."""
    clip: Annotated[tuple[FiniteFloat, FiniteFloat] | None, NoDecode] = None
    """Least and greatest value of a model in the sum of `combine`, as `-5,5`."""
    aggregation: Aggregation = "last"
    """How a step model's rewards of steps become the reward: `last`, `min`, `mean` or `product`."""
    prompt_field: str = "question"
    """Field of verl's `extra_info` that holds the prompt."""

    @field_validator("combine", mode="before")
    @classmethod
    def _split_weights(cls, value: object) -> object:
        if isinstance(value, str):
            return [item.rsplit("=", 1) for item in value.replace(",", " ").split()]
        return list(value.items()) if isinstance(value, Mapping) else value

    @field_validator("urls", "models", "clip", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return value.replace(",", " ").split()
        # Also the lists of OmegaConf.
        return list(value) if isinstance(value, Sequence) else value

    @classmethod
    def load(cls, **overrides: Any) -> ClientSettings:
        """Return settings from arguments, the environment and the defaults.

        Raises:
            ServiceError: an unknown name or a bad value.
        """
        prefix = cls.model_config["env_prefix"]
        known = {prefix + name.upper() for name in cls.model_fields}
        unknown = sorted(v for v in os.environ if v.startswith(prefix) and v not in known)
        if unknown:
            raise ServiceError(
                f"the environment has {unknown[0]}, which is not a setting; the settings are: "
                + ", ".join(sorted(known))
            )
        try:
            return cls(**overrides)
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ServiceError(f"bad settings of the client: {'; '.join(problems)}") from None
