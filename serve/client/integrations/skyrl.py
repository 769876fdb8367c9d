"""SkyRL: an environment of one turn whose reward is the service's; needs `skyrl-gym`.

Register it where SkyRL's workers see it, before the trainer starts:

    register(id="skyreward", entry_point="serve.client.integrations.skyrl:SkyRewardEnv")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

from rm_core import strip_end
from serve.client.integrations.base import get_reward_client


class SkyRewardEnv(BaseTextEnv):
    """Ends after one answer, with its raw reward. A column `tools` is rendered.

    The settings in `env_config` take precedence over `SKYREWARD_CLIENT_*`.
    """

    def __init__(self, env_config: Any = None, extras: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._client = get_reward_client(**dict(env_config or {}))
        self._client.reader.require_on_error("SkyRL")
        self._tools = (extras or {}).get("tools")
        self._prompt: list[Any] = []

    def init(self, prompt: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the prompt, whose answer `step` scores."""
        self._prompt = [*prompt]
        return prompt, {}

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """Return the raw reward of an answer; SkyRL runs this in a thread."""
        answer = strip_end(action)
        item = self._client.reader.build_conversation(self._prompt, answer, self._tools)
        (reward,) = self._client.score([item]).get_numbers()
        return BaseTextEnvStepOutput(
            observations=[], reward=reward, done=True, metadata={"skyreward": reward}
        )
