"""OpenRLHF: the file that `--reward.remote_url` takes, with `reward_func` in it.

Queries come with the policy's template and special tokens in them; the setting `policy_template`
says how to read the turns back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve.client.integrations.base import get_reward_client, logger


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any] | None = None, **_: Any
) -> dict[str, Any]:
    """Raw rewards of queries, each a prompt and the answer to it, in order."""
    try:
        chosen = get_reward_client()
        pairs = zip(queries, prompts, strict=True)
        rewards = chosen.score(
            [chosen.reader.parse_conversation(query, prompt) for query, prompt in pairs]
        )
    except Exception:
        # OpenRLHF logs it as information and goes on without a reward.
        logger.exception("no rewards for %d queries", len(queries))
        raise
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"skyreward": rewards}}
