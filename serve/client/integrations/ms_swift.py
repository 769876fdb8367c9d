"""ms-swift: asynchronous reward functions for `orms` in an external plugin.

ms-swift leaves a missing reward out of the sum of the functions, where it counts as 0; only with
`scale_rewards` `gdpo` it has no influence. `group` gives all completions of a prompt none, so that
their rewards are equal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rm_core.types import Conversation
from serve.client.integrations.base import (
    RewardClient,
    Scores,
    SharedScores,
    get_column,
    get_reward_client,
    with_tools,
)


class SkyRewardORM:
    """An `AsyncORM` of ms-swift, without the import: ms-swift checks only for an async call.

    `settings` take precedence over `SKYREWARD_CLIENT_*`.
    """

    def __init__(self, args: Any = None, **settings: Any) -> None:
        self.args = args
        self._settings = settings
        self._get_client()  # raises an error about bad settings at the start

    async def __call__(
        self, completions: Sequence[str], messages: Sequence[Conversation], **columns: Any
    ) -> list[float | None]:
        """Return the reward of each completion, in order; `messages` end with the completions.

        A column `tools` is rendered.
        """
        # ms-swift runs a new event loop at every step; on a thread, connections are reused.
        return (await asyncio.to_thread(self._score, messages, columns)).rewards

    def _score(self, messages: Sequence[Any], columns: dict[str, Any]) -> Scores:
        tools = get_column(columns, "tools", len(messages))
        rows = [with_tools(*row) for row in zip(messages, tools, strict=True)]
        return self._get_client().score(rows, [conversation[:-1] for conversation in messages])

    def _get_client(self) -> RewardClient:
        return get_reward_client(**self._settings)


def build_orms(models: Sequence[str], **settings: Any) -> dict[str, type[SkyRewardORM]]:
    """Return an ORM for each model, for `orms.update`; one request scores a batch for all."""
    shared = SharedScores(models)

    def build(model: str) -> type[SkyRewardORM]:
        class ModelORM(SkyRewardORM):
            def __init__(self, args: Any = None) -> None:
                super().__init__(args, models=tuple(models), **settings)

            async def __call__(
                self, completions: Sequence[str], messages: Sequence[Conversation], **columns: Any
            ) -> list[float | None]:
                def score() -> Scores:
                    return self._score(messages, columns)

                scores = await asyncio.to_thread(shared.get, model, (messages,), score)
                return scores.components[model]

        ModelORM.__name__ = ModelORM.__qualname__ = model
        return ModelORM

    return {model: build(model) for model in models}
