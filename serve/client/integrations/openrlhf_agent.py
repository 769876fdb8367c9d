"""OpenRLHF's agents: the file for `--train.agent_func_path`; needs `openrlhf`.

The text of an episode has the policy's template, which `policy_template` has to name. For several
turns, write a file with your own `AgentInstance` that inherits from the one here, and override
`step`; `score` gives the reward of the text so far.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor

from serve.client.integrations.base import get_reward_client


class AgentInstance(AgentInstanceBase):
    """An episode of one answer, with its raw reward."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    async def step(self, state_dict: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        """Return the raw reward of `action_text`, and end the episode."""
        reward = await self.score(state_dict["observation_text"], state_dict["action_text"])
        return {
            "rewards": torch.tensor(reward),
            "scores": torch.tensor(reward),
            "environment_feedback": "",
            "done": True,
            "extra_logs": {"skyreward": torch.tensor(reward)},
        }

    async def score(self, observation: str, action: str) -> float:
        """Return the raw reward of a text from the prompt on, with the policy's last answer."""
        client = get_reward_client()
        client.reader.require_on_error("OpenRLHF")
        item = client.reader.parse_conversation(observation + action, observation)
        scores = await asyncio.to_thread(client.score, [item])
        return scores.get_numbers()[0]


class AgentExecutor(MultiTurnAgentExecutor):
    """What OpenRLHF looks for in the file."""

    def __init__(self) -> None:
        super().__init__(AgentInstance)
