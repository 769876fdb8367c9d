"""verl: `custom_reward_function`, one answer at a time or, with the batch manager, all.

verl gives a reward function the answer but not the prompt: that is looked up in `extra_info`, under
the setting `prompt_field`. Keywords of `reward_kwargs` are settings that win over the environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rm_core import ScoreError
from serve.client.integrations.base import Item, RewardClient, get_reward_client

# What verl gives beside the settings, where it runs reward models of its own.
_VERL_ARGUMENTS = ("reward_router_address", "reward_model_tokenizer")


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    **settings: Any,
) -> float:
    """The raw reward of an answer."""
    chosen = _get_client(settings)
    (reward,) = await chosen.score_async([_build_item(chosen, extra_info, solution_str)])
    return reward


def compute_score_batch(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    **settings: Any,
) -> list[float]:
    """The raw reward of each answer, in order."""
    chosen = _get_client(settings)
    pairs = zip(extra_infos, solution_strs, strict=True)
    return chosen.score([_build_item(chosen, info, answer) for info, answer in pairs])


def _get_client(settings: Mapping[str, Any]) -> RewardClient:
    return get_reward_client(
        **{name: v for name, v in settings.items() if name not in _VERL_ARGUMENTS}
    )


def _build_item(client: RewardClient, extra_info: Mapping[str, Any] | None, answer: str) -> Item:
    name = client.settings.prompt_field
    info = extra_info or {}
    if info.get(name) is None:
        return ScoreError(
            "invalid_conversation",
            f"`extra_info` has no {name!r}, where the prompt should be (it has: "
            f"{', '.join(map(repr, info)) or 'nothing'}); add it to the data, or name another "
            "field by reward_kwargs.prompt_field",
        )
    return client.reader.build_conversation(info[name], answer)
