"""TRL: `reward_funcs` of `GRPOTrainer` and `RLOOTrainer`, for conversational and text datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rm_core import Reward, ScoreError
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

    def _extract_rewards(
        self, results: Sequence[Reward | ScoreError], columns: Mapping[str, Any]
    ) -> list[float]:
        """Return the rewards; log the rewards of steps in TRL's table of completions."""
        rewards = self.reader.extract_rewards(results)
        steps = [list(r.step_rewards) if isinstance(r, Reward) else [] for r in results]
        log_extra = columns.get("log_extra")
        if log_extra is not None and any(steps):
            log_extra(f"{self.__name__}_steps", steps)
        return rewards


class TRLReward(_TRLRewardBase):
    """A reward function for TRL; can be pickled.

    Args:
        client: client of the service.
        name: name of the reward function in TRL's logs.
        reading: `truncation`, `policy_template`, `failed_reward`, `aggregation`; see
            `ConversationReader`.
    """

    def __init__(self, client: ScoringClient, *, name: str = "skyreward", **reading: Any) -> None:
        super().__init__(reading, name)
        self.client = client

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """Return the raw reward of each completion, in order; a column `tools` is rendered."""
        results = self.client.results(
            self._build_conversations(prompts, completions, columns),
            self.reader.truncation,
            aggregation=self.reader.aggregation,
        )
        return self._extract_rewards(results, columns)


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
        results = await self.client.results(
            self._build_conversations(prompts, completions, columns),
            self.reader.truncation,
            aggregation=self.reader.aggregation,
        )
        return self._extract_rewards(results, columns)
