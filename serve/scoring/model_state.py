"""States of the served models, as the metrics take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from rm_core import Fingerprint
from serve.scoring.served_model import ServedModel
from serve.telemetry.collectors import ModelState


def get_model_states(models: Mapping[str, ServedModel]) -> dict[str, ModelState]:
    """Return the current state of each model, by alias."""
    return {alias: _get_state(model) for alias, model in models.items()}


def _get_state(model: ServedModel) -> ModelState:
    info = model.model_info or {}
    return ModelState(
        ready=model.state == "ready",
        fingerprint={
            field.name: str(info[field.name]) for field in fields(Fingerprint) if field.name in info
        },
        num_replicas=model.dispatcher.num_replicas,
        queued_tokens=model.dispatcher.queued_tokens,
        num_waiting=model.dispatcher.num_waiting,
        num_in_flight=model.dispatcher.num_in_flight,
        cache=model.cache.stats if model.cache is not None else None,
    )
