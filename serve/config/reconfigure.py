"""Settings that `user_config` of a Serve config may change while the service runs.

Serve passes `user_config` to `reconfigure` of gateways and scorer replicas. Settings that are left
out have the values of the start. An unknown name is refused, and with it the whole change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rm_core import ModelLoadError
from serve.config.settings import REMOVED_SETTINGS, Settings, format_validation_error

# None of these affects loaded models or listening sockets. `api_keys` is not among them: Serve
# shows `user_config` to everyone who asks for its status.
RECONFIGURABLE_FIELDS = (
    "admin_api_keys_file", "allowed_hosts", "answer_timeout_s", "api_keys_file", "body_timeout_s",
    "log_level", "max_body_bytes", "max_conversations", "max_messages", "max_queued_image_bytes",
    "max_queued_tokens", "max_request_images", "max_request_timeout_s", "max_requests",
    "max_requests_per_key", "min_body_rate", "request_timeout_s",
)  # fmt: skip


def apply_user_config(settings: Settings, user_config: Mapping[str, Any]) -> Settings:
    """Return the gateway's settings with the changes of `user_config`."""
    if unknown := sorted(set(user_config) - set(RECONFIGURABLE_FIELDS)):
        if unknown[0] in REMOVED_SETTINGS:
            raise ModelLoadError(
                f"user_config has {unknown[0]!r}, which was removed: {REMOVED_SETTINGS[unknown[0]]}"
            )
        raise ModelLoadError(
            f"user_config has {unknown[0]!r}, which cannot be changed while the service runs; "
            f"these can: {', '.join(RECONFIGURABLE_FIELDS)}"
        )
    current = {name: getattr(settings, name) for name in type(settings).model_fields}
    return Settings.load(**{**current, **user_config})


class ReplicaUserConfig(BaseModel):
    """Settings of a scorer replica that may change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_level: str | None = Field(default=None, pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    stuck_after_s: float | None = Field(default=None, gt=0)

    @classmethod
    def from_user_config(cls, user_config: Mapping[str, Any]) -> ReplicaUserConfig:
        """Validate `user_config`."""
        try:
            return cls.model_validate(dict(user_config))
        except ValidationError as error:
            raise ModelLoadError(format_validation_error(error)) from None
