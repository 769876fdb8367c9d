"""verl: `custom_reward_function`, for single answers or, with the batch manager, for batches.

verl passes the answer to a reward function, but not the prompt. The prompt is taken from
`extra_info`, from the key that the setting `prompt_field` names, and images of the prompt from the
key `images`, if there is one. Keywords of `reward_kwargs` are settings that take precedence over
the environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rm_core import ScoreError
from serve.client.integrations.base import Item, RewardClient, get_reward_client

# Keywords that verl adds to the settings if it runs reward models itself.
_VERL_ARGUMENTS = ("reward_router_address", "reward_model_tokenizer")


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    **settings: Any,
) -> float:
    """Return the raw reward of an answer."""
    client = _get_client(settings)
    (reward,) = await client.score_async([_build_item(client, extra_info, solution_str)])
    return reward


def compute_score_batch(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    **settings: Any,
) -> list[float]:
    """Return the raw reward of each answer, in order."""
    client = _get_client(settings)
    pairs = zip(extra_infos, solution_strs, strict=True)
    return client.score([_build_item(client, info, answer) for info, answer in pairs])


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
            f"`extra_info` has no key {name!r} with the prompt (its keys: "
            f"{', '.join(map(repr, info)) or 'none'}); add it to the data, or name another key "
            "with reward_kwargs.prompt_field",
        )
    return client.reader.build_conversation(info[name], answer, images=info.get("images"))
