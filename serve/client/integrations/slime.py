"""slime: `--custom-rm-path serve.client.integrations.slime.custom_rm`, also with `--group-rm`.

slime puts the column of `--tool-key` into a sample's metadata. The tools are rendered if the prompt
is messages. A prompt that is text already contains the tools as the policy's template wrote them.
"""

from __future__ import annotations

from typing import Any

from serve.client.integrations.base import get_reward_client


async def custom_rm(args: Any, sample: Any, **_: Any) -> float | list[float]:
    """Return the reward of a sample, or of each sample of a list, in order."""
    client = get_reward_client()
    client.reader.require_on_error("slime")
    samples = sample if isinstance(sample, list) else [sample]
    items = [
        client.reader.parse_conversation(one.prompt + one.response, one.prompt)
        if isinstance(one.prompt, str)
        else client.reader.build_conversation(one.prompt, one.response, _get_tools(one))
        for one in samples
    ]
    rewards = (await client.score_async(items)).get_numbers()
    return rewards if isinstance(sample, list) else rewards[0]


def _get_tools(sample: Any) -> Any:
    metadata = getattr(sample, "metadata", None)
    return metadata.get("tools") if isinstance(metadata, dict) else None
