"""Scores two rollouts with verifiers' own task, whose config names our reward."""

from __future__ import annotations

import asyncio
import json
import sys

import verifiers.v1 as vf

QUESTION, *ANSWERS = sys.argv[1:]


async def score(answer: str) -> dict[str, object]:
    config = vf.TaskConfig.model_validate(
        {
            "rewards": {
                "skyreward": {"fn": "serve.client.integrations.verifiers:reward", "weight": 2}
            }
        }
    )
    data = vf.TaskData(prompt=QUESTION)
    task = vf.Task(data, config)
    trace = vf.Trace(
        task=vf.TraceTask(type="Task", data=data), agent=vf.AgentInfo(config=vf.AgentConfig())
    )
    trace.nodes = [
        vf.MessageNode(message=vf.UserMessage(content=QUESTION)),
        vf.MessageNode(parent=0, message=vf.AssistantMessage(content=answer), sampled=True),
    ]
    await task.score(trace)
    return {"reward": trace.reward, "score": trace.rewards["skyreward"].score}


async def main() -> None:
    from serve.client.integrations.base import get_reward_client

    print(json.dumps([await score(answer) for answer in ANSWERS]))
    await get_reward_client().async_client.close()


asyncio.run(main())
