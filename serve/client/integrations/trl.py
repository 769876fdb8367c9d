"""TRL: `reward_funcs` of `GRPOTrainer` and `RLOOTrainer`, for conversational and text datasets.

Images of a vision dataset are in the messages, where TRL puts them, or in a column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rm_core import Reward, ScoreError
from serve.client.async_client import AsyncScoringClient
from serve.client.errors import ScoringFailedError
from serve.client.images import to_wire
from serve.client.integrations.base import ConversationReader, Item, get_column
from serve.client.responses import RankedResponse
from serve.client.sansio import encode_json
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
        # The names that TRL reads; it passes them along even where the prompts have the images.
        name = "images" if "images" in columns else "image"
        images = get_column(columns, name, len(prompts))
        rows = zip(prompts, completions, tools, images, strict=True)
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
        """Return the raw reward of each completion, in order.

        The columns `tools`, and `images` or `image`, become parts of the conversations.
        """
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
        """Return the raw reward of each completion, in order.

        The columns `tools`, and `images` or `image`, become parts of the conversations.
        """
        results = await self.client.results(
            self._build_conversations(prompts, completions, columns),
            self.reader.truncation,
            aggregation=self.reader.aggregation,
        )
        return self._extract_rewards(results, columns)


class TRLJudgeReward(_TRLRewardBase):
    """A reward function for TRL from a judge, which compares the completions of each prompt.

    A reward is the mean margin against the other completions of the prompt in the batch of the
    process, of which there has to be one at least. Can be pickled.

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
        """Return the mean margin of each completion, in order."""
        # Not the tools, which a judge does not read. It refuses images.
        images = {name: value for name, value in columns.items() if name in ("images", "image")}
        items = self._build_conversations(prompts, completions, images)
        groups: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault(encode_json(to_wire(prompt)), []).append(index)
        results: dict[int, RankedResponse | ScoreError] = {}
        with ThreadPoolExecutor(self.client.options.max_concurrency) as pool:
            ranked = pool.map(self._rank, [[items[i] for i in group] for group in groups.values()])
            for group, responses in zip(groups.values(), ranked, strict=True):
                results.update(zip(group, responses, strict=True))
        return self.reader.extract_rewards([results[index] for index in range(len(items))])

    def _rank(self, items: Sequence[Item]) -> Sequence[RankedResponse | ScoreError]:
        try:
            return self.client.rank(None, items, self.reader.truncation).responses
        except ScoringFailedError as error:
            return error.results
