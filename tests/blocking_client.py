"""An asynchronous client that is called as the other one is, so that tests are of both."""

from __future__ import annotations

import asyncio
from typing import Any

from serve.client import AsyncScoringClient


class Blocking:
    """An asynchronous client, called as the other is."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.client = AsyncScoringClient(*args, **options)
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.client, name)
        if not callable(value):
            return value
        return lambda *args, **options: self._runner.run(value(*args, **options))

    def end(self) -> None:
        self._runner.run(self.client.close())
        self._runner.close()
