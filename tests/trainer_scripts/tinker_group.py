"""Rewards of a group of completions, computed by Tinker's cookbook with our preference model."""

from __future__ import annotations

import asyncio
import json
import sys

from tinker import ModelInput
from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.rl.preference_envs import PairwisePreferenceGroupBuilder, TournamentPattern
from tinker_cookbook.rl.types import Trajectory, Transition
from transformers import AutoTokenizer

from serve.client.integrations.base import get_reward_client
from serve.client.integrations.tinker import SkyRewardPreferenceModelBuilder

FOLDER, QUESTION, *ANSWERS = sys.argv[1:]


async def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    renderer = get_renderer("role_colon", tokenizer)
    builder = PairwisePreferenceGroupBuilder(
        convo_prefix=[{"role": "user", "content": QUESTION}],
        policy_renderer=renderer,
        tournament_pattern=TournamentPattern.ALL_PAIRS_BOTH_WAYS,
        preference_model=SkyRewardPreferenceModelBuilder()(),
        num_envs=len(ANSWERS),
    )
    group = []
    for answer in ANSWERS:
        tokens = tokenizer(answer + "\n\nUser:", add_special_tokens=False)["input_ids"]
        action = TokensWithLogprobs(tokens=tokens, maybe_logprobs=None)
        step = Transition(ob=ModelInput.empty(), ac=action, reward=0.0, episode_done=True)
        group.append(Trajectory(transitions=[step], final_ob=ModelInput.empty()))
    rewards = await builder.compute_group_rewards(group, await builder.make_envs())
    print(json.dumps([metrics["win_minus_loss"] for _, metrics in rewards]))
    await get_reward_client().async_client.close()


asyncio.run(main())
