"""OpenRLHF: the module for `--reward.remote_url`, with `reward_func`.

Queries are rendered with the policy's template, including special tokens; set `policy_template` so
that the turns can be parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve.client.integrations.base import get_reward_client, logger


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any] | None = None, **_: Any
) -> dict[str, Any]:
    """Return the rewards of queries (each a prompt and its answer), in order.

    Those of several models are summed, and logged one by one.
    """
    try:
        client = get_reward_client()
        client.reader.require_on_error("OpenRLHF")
        pairs = zip(queries, prompts, strict=True)
        scores = client.score(
            [client.reader.parse_conversation(query, prompt) for query, prompt in pairs]
        )
    except Exception:
        # OpenRLHF logs the exception at level INFO and continues without a reward.
        logger.exception("no rewards for %d queries", len(queries))
        raise
    rewards = scores.get_numbers()
    logs = {"skyreward": rewards, **scores.components}
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}
