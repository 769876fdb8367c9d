"""AReaL: `reward_fn="serve.client.integrations.areal.reward_fn"` of a workflow.

AReaL gives a reward function the prompt as text that the policy's chat template rendered, and the
other columns of the row by keyword. If a column `messages` has the prompt, as AReaL's workflows
expect, it is used, so that no template has to be parsed. AReaL runs the function in processes of
its own; after 15 s without an answer it tries three more times and then trains on 0 without an
error, so that `retry_s` and `timeout_s` should be below that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rm_core import strip_end
from serve.client.integrations.base import get_reward_client


def reward_fn(
    prompt: str,
    completions: str,
    prompt_ids: Sequence[int] | None = None,
    completion_ids: Sequence[int] | None = None,
    **row: Any,
) -> float:
    """Return the raw reward of one completion, which may end with end markers.

    A column `tools` is rendered where a column `messages` has the prompt.
    """
    client = get_reward_client()
    client.reader.require_on_error("AReaL")
    if row.get("messages") is None:
        item = client.reader.parse_conversation(prompt + completions, prompt)
    else:
        answer = strip_end(completions)
        item = client.reader.build_conversation(row["messages"], answer, row.get("tools"))
    (reward,) = client.score([item]).get_numbers()
    return reward
