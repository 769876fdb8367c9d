"""ms-swift: an asynchronous reward function for `orms` in an external plugin."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rm_core.types import Conversation
from serve.client.integrations.base import RewardClient, get_column, get_reward_client, with_tools


class SkyRewardORM:
    """An `AsyncORM` of ms-swift, without the import: ms-swift checks only for an async call.

    Args:
        args: arguments of the trainer, unused.
        settings: settings that take precedence over `SKYREWARD_CLIENT_*`.
    """

    def __init__(self, args: Any = None, **settings: Any) -> None:
        self.args = args
        self._settings = settings
        self._get_client()  # raises an error about bad settings at the start

    async def __call__(
        self, completions: Sequence[str], messages: Sequence[Conversation], **columns: Any
    ) -> list[float]:
        """Return the raw reward of each completion, in order; `messages` end with the completions.

        A column `tools` is rendered.
        """
        tools = get_column(columns, "tools", len(messages))
        rows = [with_tools(*row) for row in zip(messages, tools, strict=True)]
        # ms-swift runs a new event loop at every step; on a thread, connections are reused.
        return await asyncio.to_thread(self._get_client().score, rows)

    def _get_client(self) -> RewardClient:
        return get_reward_client(**self._settings)
