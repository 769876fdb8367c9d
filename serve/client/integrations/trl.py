"""TRL: `reward_funcs` of `GRPOTrainer` and `RLOOTrainer`, for conversational and text datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve.client.async_client import AsyncScoringClient
from serve.client.integrations.base import Item, Reading, column
from serve.client.sync_client import ScoringClient


class _Named:
    def __init__(self, reading: dict[str, Any], name: str) -> None:
        self.reading = Reading(**reading)
        # What TRL's logs call it.
        self.__name__ = name

    def _items(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> list[Item]:
        tools = column(columns, "tools", len(prompts))
        rows = zip(prompts, completions, tools, strict=True)
        return [self.reading.conversation(*row) for row in rows]


class TRLReward(_Named):
    """A reward function. Pickles.

    Args:
        client: of the service.
        name: in TRL's logs.
        reading: `truncation`, `policy_template`, `failed_reward`; see `Reading`.
    """

    def __init__(self, client: ScoringClient, *, name: str = "skyreward", **reading: Any) -> None:
        super().__init__(reading, name)
        self.client = client

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """The raw reward of each completion, in order; a column `tools` is rendered."""
        items = self._items(prompts, completions, columns)
        return self.reading.rewards(self.client.results(items, self.reading.truncation))


class AsyncTRLReward(_Named):
    """The same, awaited: TRL runs all asynchronous reward functions at the same time.

    Args:
        client: of the service.
        name: in TRL's logs.
        reading: see `TRLReward`.
    """

    def __init__(
        self, client: AsyncScoringClient, *, name: str = "skyreward", **reading: Any
    ) -> None:
        super().__init__(reading, name)
        self.client = client

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """The raw reward of each completion, in order; a column `tools` is rendered."""
        items = self._items(prompts, completions, columns)
        return self.reading.rewards(await self.client.results(items, self.reading.truncation))
