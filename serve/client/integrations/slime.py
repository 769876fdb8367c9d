"""slime: `--custom-rm-path serve.client.integrations.slime.custom_rm`, also with `--group-rm`.

slime puts the column of `--tool-key` into a sample's metadata; it is rendered where the prompt is
messages. A prompt that is text already has what the policy's template wrote of it.
"""

from __future__ import annotations

from typing import Any

from serve.client.integrations.base import get_reward_client


async def custom_rm(args: Any, sample: Any, **_: Any) -> float | list[float]:
    """The raw reward of a sample, or of each of a list of samples, in order."""
    chosen = get_reward_client()
    samples = sample if isinstance(sample, list) else [sample]
    items = [
        chosen.reader.parse_conversation(one.prompt + one.response, one.prompt)
        if isinstance(one.prompt, str)
        else chosen.reader.build_conversation(one.prompt, one.response, _tools(one))
        for one in samples
    ]
    rewards = await chosen.score_async(items)
    return rewards if isinstance(sample, list) else rewards[0]


def _tools(sample: Any) -> Any:
    metadata = getattr(sample, "metadata", None)
    return metadata.get("tools") if isinstance(metadata, dict) else None
