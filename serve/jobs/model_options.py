"""What the model options of the command line mean."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from rm_core import ModelConfig, ModelLoadError
from serve.config.model_settings import ModelSettings
from serve.config.settings import format_validation_error


def build_model_config(model: str, **fields: Any) -> ModelConfig:
    """What the command line's model options mean; NAME@REVISION as in the settings.

    Args:
        model: as on the command line.
        chosen: other fields of `ModelConfig`.

    Raises:
        ModelLoadError: a bad value.
    """
    try:
        short = ModelSettings.model_validate(model)
    except ValidationError as error:
        raise ModelLoadError(format_validation_error(error)) from None
    return ModelConfig(name=short.name, revision=short.revision, catalog_name=short.alias, **fields)
