"""Model options of the command line as a `ModelConfig`."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from rm_core import ModelConfig, ModelLoadError
from serve.config.model_settings import ModelSettings
from serve.config.settings import format_validation_error


def build_model_config(model: str, **fields: Any) -> ModelConfig:
    """Build a model configuration from options of the command line.

    `model` is NAME or NAME@REVISION; `fields` are other fields of `ModelConfig`.

    Raises:
        ModelLoadError: an option has an invalid value.
    """
    try:
        settings = ModelSettings.model_validate(model)
    except ValidationError as error:
        raise ModelLoadError(format_validation_error(error)) from None
    return ModelConfig(
        name=settings.name, revision=settings.revision, catalog_name=settings.alias, **fields
    )
