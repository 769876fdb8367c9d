"""ms-swift: an asynchronous reward function for `orms` in an external plugin."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rm_core.types import Conversation
from serve.client.integrations.base import RewardClient, get_column, get_reward_client, with_tools


class SkyRewardORM:
    """What an `AsyncORM` is to ms-swift, which tells one by its call; it need not be imported.

    Args:
        args: of the trainer, unused.
        settings: that win over `SKYREWARD_CLIENT_*`.
    """

    def __init__(self, args: Any = None, **settings: Any) -> None:
        self.args = args
        self._settings = settings
        self._get_client()  # what is wrong with them is told at the start

    async def __call__(
        self, completions: Sequence[str], messages: Sequence[Conversation], **columns: Any
    ) -> list[float]:
        """The raw reward of each completion, in order; `messages` end with them.

        A column `tools` is rendered.
        """
        tools = get_column(columns, "tools", len(messages))
        rows = [with_tools(*row) for row in zip(messages, tools, strict=True)]
        # ms-swift runs an event loop of its own at every step: on a thread, connections last.
        return await asyncio.to_thread(self._get_client().score, rows)

    def _get_client(self) -> RewardClient:
        return get_reward_client(**self._settings)
