"""Tinker cookbook: a preference model, without an import of the cookbook.

A score is `2 * sigmoid(reward_B - reward_A) - 1`, between -1 (A is better) and 1 (B is better): the
expected outcome of the comparison by the Bradley-Terry model that reward models are trained with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.client.integrations.base import build_chat, get_reward_client

_FIELDS = ("role", "tool_call_id", "name")


class SkyRewardPreferenceModel:
    """Scores a `Comparison`; `PairwisePreferenceGroupBuilder` awaits it for each pair of a group.

    The settings take precedence over `SKYREWARD_CLIENT_*`.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        # Raises an error about bad settings at the start.
        get_reward_client(**settings).reader.require_on_error("Tinker")

    async def __call__(self, comparison: Any) -> float:
        """Score a comparison; reasoning and calls that cannot be read are left out."""
        prompt = _read_messages(comparison.prompt_conversation)
        sides = map(_read_messages, (comparison.completion_A, comparison.completion_B))
        scores = await get_reward_client(**self._settings).score_async(
            [build_chat([*prompt, *completion]) for completion in sides]
        )
        first, second = scores.get_numbers()
        return math.tanh((second - first) / 2)


@dataclass(frozen=True)
class SkyRewardPreferenceModelBuilder:
    """Builds the preference model; for `preference_model_builder` of a dataset builder."""

    # Settings that take precedence over `SKYREWARD_CLIENT_*`.
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> SkyRewardPreferenceModel:
        """Return a preference model with these settings."""
        return SkyRewardPreferenceModel(**self.settings)


def _read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return messages as OpenAI's chat API writes them."""
    read = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [part for part in content if part["type"] != "thinking"]
        calls = [call.model_dump(exclude_none=True) for call in message.get("tool_calls") or ()]
        fields = {name: message[name] for name in _FIELDS if message.get(name) is not None}
        read.append({**fields, "content": content} | ({"tool_calls": calls} if calls else {}))
    return read
