"""TRL: `reward_funcs` of `GRPOTrainer` and `RLOOTrainer`, for conversational and text datasets.

Images of a vision dataset are in the messages, where TRL puts them, or in a column. TRL masks a
completion for which every reward function gives None: it counts neither in the baseline of its
group nor in the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from rm_core import Reward, ScoreError
from serve.client.async_client import AsyncScoringClient
from serve.client.errors import ScoringFailedError
from serve.client.images import to_wire
from serve.client.integrations.base import (
    ConversationReader,
    Item,
    Scores,
    SharedScores,
    get_column,
)
from serve.client.responses import RankedResponse
from serve.client.sansio import encode_json
from serve.client.sync_client import ScoringClient

ClientT = TypeVar("ClientT", bound=ScoringClient | AsyncScoringClient)
Rewards = list[float | None]


class _TRLRewardBase(Generic[ClientT]):
    """What the reward functions share.

    Args:
        client: client of the service.
        name: name of the reward function in TRL's logs.
        reading: fields of `ConversationReader`; with `models`, the reward is the weighted sum.
    """

    def __init__(self, client: ClientT, *, name: str = "skyreward", **reading: Any) -> None:
        self.client = client
        self.reader = ConversationReader(**reading)
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

    def _log_details(self, scores: Scores, columns: Mapping[str, Any], *models: str) -> None:
        """Log the rewards of steps and turns in TRL's table of completions."""
        log_extra = columns.get("log_extra")
        if log_extra is None:
            return
        for model in models or scores.results:
            name = self.__name__ if len(models or scores.results) == 1 else model
            steps = [
                list(r.step_rewards) if isinstance(r, Reward) else [] for r in scores.results[model]
            ]
            if any(steps):
                log_extra(f"{name}_steps", steps)
            turns = [[turn.reward for turn in item] for item in scores.turns.get(model, ())]
            if any(turns):
                log_extra(f"{name}_turns", turns)


class TRLReward(_TRLRewardBase[ScoringClient]):
    """A reward function for TRL; can be pickled."""

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> Rewards:
        """Return the reward of each completion, in order.

        The columns `tools`, and `images` or `image`, become parts of the conversations.
        """
        items = self._build_conversations(prompts, completions, columns)
        scores = self.reader.score(self.client, items, prompts)
        self._log_details(scores, columns)
        return scores.rewards


class AsyncTRLReward(_TRLRewardBase[AsyncScoringClient]):
    """An asynchronous `TRLReward`, which TRL runs concurrently; can be pickled."""

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> Rewards:
        """Return the reward of each completion, in order.

        The columns `tools`, and `images` or `image`, become parts of the conversations.
        """
        items = self._build_conversations(prompts, completions, columns)
        scores = await self.reader.score_async(self.client, items, prompts)
        self._log_details(scores, columns)
        return scores.rewards


class TRLModelReward(_TRLRewardBase[ScoringClient]):
    """A reward function for TRL with the rewards of one of several models; can be pickled."""

    def __init__(
        self, client: ScoringClient, shared: SharedScores, model: str, **reading: Any
    ) -> None:
        super().__init__(client, name=model, **reading)
        self._shared = shared

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> Rewards:
        """Return the reward of the model for each completion, in order."""

        def score() -> Scores:
            items = self._build_conversations(prompts, completions, columns)
            return self.reader.score(self.client, items, prompts)

        model = self.__name__
        scores = self._shared.get(model, (prompts, completions), score)
        self._log_details(scores, columns, model)
        return scores.components[model]


def build_reward_funcs(
    client: ScoringClient, models: Sequence[str], **reading: Any
) -> list[TRLModelReward]:
    """Return one reward function for each model; one request scores a batch for all of them.

    TRL keeps their rewards apart: with `multi_objective_aggregation="normalize_then_sum"` (GDPO)
    each is normalized in its group before the sum.

    Args:
        client: client of the service.
        models: aliases of the models, which are the names in TRL's logs.
        reading: other fields of `ConversationReader`; `combine` and `clip` are not used.
    """
    reading["models"] = tuple(models)
    shared = SharedScores(models)
    return [TRLModelReward(client, shared, model, **reading) for model in models]


class TRLJudgeReward(_TRLRewardBase[ScoringClient]):
    """A reward function for TRL from a judge, which compares the completions of each prompt.

    A reward is the mean margin against the other completions of the prompt in the batch of the
    process, of which there has to be one at least. Can be pickled. Of the fields of
    `ConversationReader`, it reads `truncation`, `policy_template` and `on_error`.
    """

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> Rewards:
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
        ordered = [results[index] for index in range(len(items))]
        return self.reader.extract({"": ordered}, prompts).rewards

    def _rank(self, items: Sequence[Item]) -> Sequence[RankedResponse | ScoreError]:
        try:
            return self.client.rank(None, items, self.reader.truncation).responses
        except ScoringFailedError as error:
            return error.results
