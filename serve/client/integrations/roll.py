"""ROLL: `worker_cls: serve.client.integrations.roll.SkyRewardWorker` of a domain's rewards.

ROLL gives a reward worker the prompt as text that the policy's chat template rendered, which
`policy_template` has to name.
"""

from __future__ import annotations

from typing import Any

import torch
from roll.distributed.executor.worker import Worker
from roll.distributed.scheduler.decorator import Dispatch, register
from roll.distributed.scheduler.protocol import DataProto
from roll.models.model_providers import default_tokenizer_provider

from serve.client.integrations.base import get_reward_client


class SkyRewardWorker(Worker):
    """Computes rewards of answers with the service; uses no GPU."""

    def __init__(self, worker_config: Any) -> None:
        super().__init__(worker_config=worker_config)
        self.rank_info.dp_rank = self.rank_info.rank
        self.rank_info.dp_size = self.rank_info.world_size
        self.tokenizer = default_tokenizer_provider(model_args=self.worker_config.model_args)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def initialize(self, pipeline_config: Any) -> None:
        """Raise an error about bad settings of the client."""
        get_reward_client().reader.require_on_error("ROLL")

    @register(dispatch_mode=Dispatch.DP_MP_COMPUTE, clear_cache=False)
    def compute_rewards(self, data: DataProto) -> DataProto:
        """Return raw rewards as float32, one for each row of `responses`."""
        client = get_reward_client()
        prompts, answers = (
            self.tokenizer.batch_decode(data.batch[name], skip_special_tokens=False)
            for name in ("prompts", "responses")
        )
        rewards = client.score(
            [
                client.reader.parse_conversation(prompt + answer, prompt)
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
        )
        scores = torch.tensor(rewards.get_numbers(), dtype=torch.float32)
        return DataProto.from_dict(
            tensors={
                "token_level_rewards": torch.zeros(
                    data.batch["responses"].shape, dtype=torch.float32
                ),
                "response_level_rewards": scores,
                "scores": scores.clone(),
            }
        )
