"""TRL: `reward_funcs` of `GRPOTrainer` and `RLOOTrainer`, for conversational and text datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve.client.async_client import AsyncScoringClient
from serve.client.integrations.base import ConversationReader, Item, get_column
from serve.client.sync_client import ScoringClient


class _TRLRewardBase:
    def __init__(self, reading: dict[str, Any], name: str) -> None:
        self.reader = ConversationReader(**reading)
        # TRL uses this name in its logs.
        self.__name__ = name

    def _build_conversations(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> list[Item]:
        tools = get_column(columns, "tools", len(prompts))
        rows = zip(prompts, completions, tools, strict=True)
        return [self.reader.build_conversation(*row) for row in rows]


class TRLReward(_TRLRewardBase):
    """A reward function for TRL; can be pickled.

    Args:
        client: client of the service.
        name: name of the reward function in TRL's logs.
        reading: `truncation`, `policy_template`, `failed_reward`; see `ConversationReader`.
    """

    def __init__(self, client: ScoringClient, *, name: str = "skyreward", **reading: Any) -> None:
        super().__init__(reading, name)
        self.client = client

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """Return the raw reward of each completion, in order; a column `tools` is rendered."""
        items = self._build_conversations(prompts, completions, columns)
        return self.reader.extract_rewards(self.client.results(items, self.reader.truncation))


class AsyncTRLReward(_TRLRewardBase):
    """An asynchronous reward function for TRL, which runs these concurrently; can be pickled.

    Args:
        client: client of the service.
        name: name of the reward function in TRL's logs.
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
        """Return the raw reward of each completion, in order; a column `tools` is rendered."""
        items = self._build_conversations(prompts, completions, columns)
        return self.reader.extract_rewards(await self.client.results(items, self.reader.truncation))
