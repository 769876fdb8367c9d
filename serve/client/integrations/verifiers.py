"""verifiers and prime-rl: a reward for `task.rewards`, without an import of verifiers.

[orchestrator.train.source.env.taskset.task.rewards.skyreward]
fn = "serve.client.integrations.verifiers:reward"
weight = 1.0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve.client.integrations.base import build_chat, get_reward_client

_FIELDS = ("role", "content", "tool_call_id", "name")


async def reward(trace: Any) -> float:
    """Return the raw reward of the last branch of a rollout, with its tools.

    Reasoning that verifiers keeps apart from the content is left out.
    """
    branches = trace.branches
    messages = [_read_message(message) for message in branches[-1].messages] if branches else []
    tools = [_read_tool(tool) for tool in branches[-1].tools or ()] if branches else []
    client = get_reward_client()
    client.reader.require_on_error("verifiers")
    scores = await client.score_async([build_chat(messages, tools or None)])
    return scores.get_numbers()[0]


def _read_message(message: Any) -> dict[str, Any]:
    """Return a message as OpenAI's chat API writes it."""
    sent = message.model_dump(exclude_none=True)
    read = {name: sent[name] for name in _FIELDS if name in sent}
    calls: Sequence[dict[str, Any]] = sent.get("tool_calls", ())
    if calls:
        read["tool_calls"] = [
            {"id": c["id"], "type": "function",
             "function": {"name": c["name"], "arguments": c["arguments"]}}
            for c in calls
        ]  # fmt: skip
    return {"content": "", **read}


def _read_tool(tool: Any) -> dict[str, Any]:
    sent = tool.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
    return {"type": "function", "function": sent}
