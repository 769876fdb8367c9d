"""What `user_config` of a Serve config may change while the service runs, without loading again.

Serve hands it to `reconfigure` of gateways and scorers. What it leaves out is as it was at the
start; an unknown name is refused, and the change with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rm_core import ModelLoadError
from serve.config.settings import Settings, format_validation_error

# Nothing that is loaded or listened on hangs on these. No keys themselves: Serve shows
# `user_config` to whoever asks for its status.
RECONFIGURABLE_FIELDS = (
    "allowed_hosts",
    "answer_timeout_s",
    "api_keys_file",
    "body_timeout_s",
    "log_level",
    "max_body_bytes",
    "max_conversations",
    "max_messages",
    "max_queued_tokens",
    "max_request_characters",
    "max_request_timeout_s",
    "max_request_tokens",
    "max_requests",
    "max_requests_per_key",
    "min_body_rate",
    "request_timeout_s",
)


def apply_user_config(settings: Settings, user_config: Mapping[str, Any]) -> Settings:
    """The gateway's settings with some of them changed.

    Raises:
        ModelLoadError: a bad value, or a name that is not in `CHANGEABLE`.
    """
    if unknown := sorted(set(user_config) - set(RECONFIGURABLE_FIELDS)):
        raise ModelLoadError(
            f"user_config has {unknown[0]!r}, which cannot be changed while the service runs; "
            f"what can: {', '.join(RECONFIGURABLE_FIELDS)}"
        )
    kept = {name: getattr(settings, name) for name in type(settings).model_fields}
    return Settings.load(**{**kept, **user_config})


class ReplicaUserConfig(BaseModel):
    """What may change about a scorer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_level: str | None = Field(default=None, pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    stuck_after_s: float | None = Field(default=None, gt=0)

    @classmethod
    def from_user_config(cls, user_config: Mapping[str, Any]) -> ReplicaUserConfig:
        """Checked.

        Raises:
            ModelLoadError: a bad value, or an unknown name.
        """
        try:
            return cls.model_validate(dict(user_config))
        except ValidationError as error:
            raise ModelLoadError(format_validation_error(error)) from None
