"""verl: `custom_reward_function`, for single answers or, with the batch manager, for batches.

verl passes the answer to a reward function, but not the prompt. The prompt is taken from
`extra_info`, from the key that the setting `prompt_field` names, and images of the prompt from the
key `images`, if there is one. Keywords of `reward_kwargs` are settings that take precedence over
the environment.

With several `models`, or a number for `on_error`, a result is a mapping, whose keys verl puts into
`reward_extra_info`: `score`, the reward of each model for `algorithm.gdpo_reward_keys`, and
`scored`, which is 0.0 for an answer without all rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rm_core import ScoreError
from serve.client.integrations.base import Item, RewardClient, Scores, get_reward_client

# Keywords that verl adds to the settings if it runs reward models itself.
_VERL_ARGUMENTS = ("reward_router_address", "reward_model_tokenizer")


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    **settings: Any,
) -> float | dict[str, float]:
    """Return the reward of an answer, or a mapping with its parts; see the module."""
    client = _get_client(settings)
    scores = await client.score_async([_build_item(client, extra_info, solution_str)])
    return _build_results(client, scores)[0]


def compute_score_batch(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    **settings: Any,
) -> list[float] | list[dict[str, float]]:
    """Return what `compute_score` returns for each answer, in order."""
    client = _get_client(settings)
    pairs = zip(extra_infos, solution_strs, strict=True)
    scores = client.score([_build_item(client, info, answer) for info, answer in pairs])
    return _build_results(client, scores)


def _get_client(settings: Mapping[str, Any]) -> RewardClient:
    client = get_reward_client(
        **{name: v for name, v in settings.items() if name not in _VERL_ARGUMENTS}
    )
    # verl has no mask for a sample: its reward has to be a number.
    client.reader.require_on_error("verl")
    return client


def _build_results(client: RewardClient, scores: Scores) -> list[float] | list[dict[str, float]]:
    """Return the rewards, or mappings with the same keys for all answers."""
    rewards = scores.get_numbers()
    if not scores.components and client.reader.on_error == "raise":
        return rewards
    return [
        {
            "score": reward,
            **{
                name: value
                for name, values in scores.components.items()
                if (value := values[index]) is not None
            },
            "scored": float(scores.is_scored[index]),
        }
        for index, reward in enumerate(rewards)
    ]


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
