"""Shared code of the reward functions: a trainer's prompts and answers in, rewards out.

A conversation that cannot be scored raises an error that names it, unless the user chose another
outcome (`on_error`) that the trainer can use.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from rm_core import (
    Aggregation,
    ChatFormatName,
    InvalidConversationError,
    Reward,
    ScoreError,
    Truncation,
    add_tools,
    parse_arguments,
    read_turns,
    strip_end,
)
from rm_core.inputs.chat_formats import find_markers
from rm_core.types import Conversation
from serve.client.async_client import AsyncScoringClient
from serve.client.errors import ScoringFailedError, ServiceError
from serve.client.image_places import fill_places, has_images
from serve.client.images import to_wire
from serve.client.responses import ModelRewards, RankedResponse, TurnReward
from serve.client.sansio import encode_json
from serve.client.settings import ClientSettings, OnError, PolicyTemplate
from serve.client.sync_client import ScoringClient

logger = logging.getLogger("serve.client")

Item: TypeAlias = Conversation | ScoreError
Result: TypeAlias = Reward | RankedResponse | ScoreError

ON_ERROR = ("raise", "none", "nan", "group")

_MAX_MESSAGES = 5
_LOGGED_KINDS: set[str] = set()
TEMPLATES: tuple[str, ...] = ("none", *get_args(ChatFormatName))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationReader:
    """Builds conversations from a trainer's texts, and rewards from results.

    Attributes:
        truncation: what to do with conversations that are too long.
        policy_template: format of the policy's chat template, which rendered the prompts:
            `chatml`, `llama3`, `gemma` or `mistral`; `none` if prompts are plain text.
        on_error: what a conversation that cannot be scored gets: `raise` an error, a number,
            `none` or `nan`, or `group`: None for all answers to its prompt.
        failed_reward: the number of `on_error`, by its old name.
        aggregation: how a step model's rewards of steps become the reward.
        models: models that score side by side; none: the client's own.
        combine: weight of each of `models` in the reward; empty: 1 each.
        calibrated: whether rewards of `models` are calibrated.
        clip: least and greatest value of a model in the sum of `combine`.
        turns: `all`: `models` also give the reward after each message of the assistant.
    """

    truncation: Truncation = "error"
    policy_template: PolicyTemplate = "none"
    on_error: OnError = "raise"
    failed_reward: float | None = None
    aggregation: Aggregation = "last"
    models: Sequence[str] = ()
    combine: Mapping[str, float] = field(default_factory=dict)
    calibrated: bool = False
    clip: tuple[float, float] | None = None
    turns: Literal["last", "all"] = "last"

    def __post_init__(self) -> None:
        if self.policy_template not in TEMPLATES:
            raise ServiceError(
                f"policy_template {self.policy_template!r} is unknown; the choices are: "
                f"{', '.join(TEMPLATES)}"
            )
        if self.failed_reward is not None:
            object.__setattr__(self, "on_error", self.failed_reward)
        is_number = isinstance(self.on_error, int | float) and math.isfinite(self.on_error)
        if not is_number and self.on_error not in ON_ERROR:
            raise ServiceError(
                f"on_error {self.on_error!r} is unknown; give a number or one of: "
                f"{', '.join(ON_ERROR)}"
            )
        if others := set(self.combine) - set(self.models):
            raise ServiceError(
                f"combine has {sorted(others)[0]!r}, which is not one of the models; add it there"
            )

    def require_on_error(self, trainer: str, *allowed: str) -> None:
        """Check that a trainer can use what `on_error` gives instead of a reward."""
        if isinstance(self.on_error, str) and self.on_error not in ("raise", *allowed):
            choices = ", ".join(("raise", *allowed))
            raise ServiceError(
                f"{trainer} does not leave out samples with on_error {self.on_error!r}; give a "
                f"number or one of: {choices}"
            )

    def build_conversation(
        self, prompt: Any, answer: Any, tools: Any = None, images: Any = None
    ) -> Item:
        """Return the conversation of a prompt and its answer.

        Args:
            prompt: text or messages, also as an array.
            answer: text, messages or a single message, also as an array.
            tools: the row's column `tools`, also as JSON text; None and blank text mean no tools.
                Unused for a prompt that the policy's template rendered, since the template wrote
                the tools into the prompt.
            images: the row's image, or list of images, which `fill_places` puts into the prompt.
                Unused if the prompt's messages have images, and refused for a prompt that the
                policy's template rendered.
        """
        prompt, answer = _to_list(prompt), _to_list(answer)
        images = [] if images is None else _to_list(images)
        if isinstance(prompt, str) and isinstance(answer, str):
            if images and (self.policy_template != "none" or _find_template_error(prompt)):
                return ScoreError(
                    "invalid_conversation",
                    "the row has images, and its prompt was rendered by the policy's chat "
                    "template, which has no place for them; give the prompt as messages",
                )
            if self.policy_template != "none":
                return self.parse_conversation(prompt + answer, prompt)
            if template_error := _find_template_error(prompt):
                return template_error
        messages = _to_messages(prompt, "user")
        if has_images(messages):
            images = []
        try:
            filled = fill_places(messages, images if isinstance(images, list | tuple) else [images])
        except InvalidConversationError as error:
            return ScoreError.from_exception(error)
        messages = [*filled, *_to_messages(answer, "assistant")]
        item: Item = with_tools(messages, tools)
        return item

    def parse_conversation(self, text: str, prompt: str) -> Item:
        """Return the conversation of a text with special tokens that begins with its prompt."""
        try:
            if self.policy_template != "none":
                return read_turns(text, prompt, self.policy_template)
        except InvalidConversationError as error:
            return ScoreError.from_exception(error)
        if template_error := _find_template_error(prompt):
            return template_error
        if not prompt or not text.startswith(prompt):
            return ScoreError("invalid_conversation", "the text does not begin with its prompt")
        return self.build_conversation(prompt, strip_end(text.removeprefix(prompt)))

    def score(
        self, client: ScoringClient, items: Sequence[Item], prompts: Sequence[Any] = ()
    ) -> Scores:
        """Score conversations, or errors, in one call; `prompts` are for `on_error` `group`.

        Raises:
            ScoringFailedError: some results are errors, and `on_error` is `raise`.
            ServiceError: the whole call failed; with `on_error`, only where a retry is of no use.
        """
        try:
            if self.models:
                return self.extract_models(
                    client.score_models(items, self.models, **self._options), prompts
                )
            return self.extract({"": client.results(items, **self._options)}, prompts)
        except ServiceError as error:
            return self._extract_failure(error, items, prompts)

    async def score_async(
        self, client: AsyncScoringClient, items: Sequence[Item], prompts: Sequence[Any] = ()
    ) -> Scores:
        """Score items in one call; see `score`."""
        try:
            if self.models:
                return self.extract_models(
                    await client.score_models(items, self.models, **self._options), prompts
                )
            return self.extract({"": await client.results(items, **self._options)}, prompts)
        except ServiceError as error:
            return self._extract_failure(error, items, prompts)

    @property
    def _options(self) -> dict[str, Any]:
        options = {"truncation": self.truncation, "aggregation": self.aggregation}
        return options | ({"turns": self.turns} if self.models else {})

    def _extract_failure(
        self, error: ServiceError, items: Sequence[Item], prompts: Sequence[Any]
    ) -> Scores:
        """Return what the items of a call get that failed as a whole."""
        if self.on_error == "raise" or not error.retryable:
            raise error
        failures = [ScoreError(error.code, error.detail)] * len(items)
        return self.extract({name: failures for name in self.models or ("",)}, prompts)

    def extract_models(
        self, results: Sequence[ModelRewards], prompts: Sequence[Any] = ()
    ) -> Scores:
        """Return the rewards of each of `models`; see `score`."""
        columns: dict[str, list[Result]] = {}
        for name in self.models:
            columns[name] = [result.results[name] for result in results]
            if self.calibrated:
                columns[name] = [self._calibrate(result, name) for result in results]
        turns = {name: [r.turn_rewards.get(name, ()) for r in results] for name in self.models}
        return replace(self.extract(columns, prompts), turns=turns)

    def _calibrate(self, result: ModelRewards, name: str) -> Reward | ScoreError:
        reward = result.results[name]
        if isinstance(reward, ScoreError):
            return reward
        if name not in result.calibrated_rewards:
            raise ServiceError(
                f"model {name!r} has no calibration for its revision; set its `calibration` to a "
                "file of `skyreward calibrate`, or leave out `calibrated`"
            )
        return replace(reward, reward=result.calibrated_rewards[name])

    def extract(
        self, columns: Mapping[str, Sequence[Result]], prompts: Sequence[Any] = ()
    ) -> Scores:
        """Return the rewards of results, with what `on_error` gives for errors; see `score`.

        They are by model, or by the empty name for the client's own model.
        """
        for results in columns.values():
            for result in results:
                if not isinstance(result, ScoreError):
                    _log_warnings(result.warnings)
        rows = list(zip(*columns.values(), strict=True))
        failures = {i: error for i, row in enumerate(rows) if (error := _find_error(columns, row))}
        if failures and self.on_error == "raise":
            raise ScoringFailedError.from_results(
                [failures.get(i, r[0]) for i, r in enumerate(rows)]
            )
        left_out = set[int]()
        if failures:
            self._log_failures(failures, len(rows))
            if isinstance(self.on_error, str):
                left_out = self._choose_left_out(failures, prompts)
        missing = math.nan if self.on_error == "nan" else None
        components: dict[str, list[float | None]] = {}
        for name, results in columns.items():
            components[name] = [
                missing if i in left_out else self._get_reward(r) for i, r in enumerate(results)
            ]
        rewards = [
            missing if i in left_out else self._combine(row)
            for i, row in enumerate(zip(*components.values(), strict=True))
        ]
        return Scores(
            rewards,
            components if self.models else {},
            [i not in failures and i not in left_out for i in range(len(rows))],
            columns,
        )

    def _choose_left_out(self, failures: Iterable[int], prompts: Sequence[Any]) -> set[int]:
        """Return the indices of the items without a reward: with several models, all of them."""
        if self.on_error != "group":
            return set(failures)
        groups = [encode_json(to_wire(_to_list(prompt))) for prompt in prompts]
        failed = {groups[index] for index in failures}
        return {index for index, group in enumerate(groups) if group in failed}

    def _get_reward(self, result: Result) -> float:
        if isinstance(result, ScoreError):
            assert not isinstance(self.on_error, str)
            return self.on_error
        return result.reward

    def _combine(self, row: Sequence[float | None]) -> float:
        """Return the weighted sum of the rewards of the models; of one model, its reward."""
        values = [value for value in row if value is not None]
        if not self.models:
            return values[0]
        low, high = self.clip or (-math.inf, math.inf)
        weights = self.combine or dict.fromkeys(self.models, 1.0)
        return math.fsum(
            weights.get(name, 0.0) * min(max(value, low), high)
            for name, value in zip(self.models, values, strict=True)
        )

    def _log_failures(self, failures: Mapping[int, ScoreError], num_items: int) -> None:
        reasons = "; ".join(
            f"{i}: {r.code}: {r.message}" for i, r in list(failures.items())[:_MAX_MESSAGES]
        )
        outcome = self.on_error if isinstance(self.on_error, str) else f"{self.on_error:g}"
        logger.warning(
            "%d of %d conversations cannot be scored and get %s: %s",
            len(failures),
            num_items,
            outcome,
            reasons,
        )


def _find_error(columns: Iterable[str], row: Sequence[Result]) -> ScoreError | None:
    """Return the first error of an item, which names its model if there are several."""
    for name, result in zip(columns, row, strict=True):
        if isinstance(result, ScoreError):
            return replace(result, message=f"{name}: {result.message}") if name else result
    return None


@dataclass(frozen=True, slots=True)
class Scores:
    """What a trainer gets for a batch."""

    # Reward of each item: that of the model, or the weighted sum of several. None or NaN for an
    # item that the trainer leaves out.
    rewards: list[float | None]
    # Reward of each item by model, for several models; an item that is left out has none of any
    # model.
    components: dict[str, list[float | None]]
    is_scored: list[bool]  # whether each item has all rewards from the service
    results: Mapping[str, Sequence[Result]]  # result of each item by model, raw or calibrated
    # By model: the rewards of the turns of each item, if they were requested.
    turns: Mapping[str, Sequence[Sequence[TurnReward]]] = field(default_factory=dict)

    def get_numbers(self) -> list[float]:
        """Return the rewards of a trainer that cannot leave out an item; see `require_on_error`."""
        return [reward for reward in self.rewards if reward is not None]


class SharedScores:
    """Scores a batch once for several functions, each of which gives the rewards of one model."""

    def __init__(self, models: Sequence[str]) -> None:
        self._models = tuple(models)
        self._lock = threading.Lock()
        self._batch: tuple[object, ...] = ()
        self._left: set[str] = set()
        self._scores: Scores | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedScores, (self._models,)

    def get(self, model: str, batch: tuple[object, ...], score: Callable[[], Scores]) -> Scores:
        """Return the scores of a batch, which are computed for the first function that asks.

        The batch is known by the identity of the objects that all functions get for it.
        """
        with self._lock:
            is_same = len(batch) == len(self._batch) and all(
                one is other for one, other in zip(batch, self._batch, strict=True)
            )
            if not is_same or model not in self._left:
                self._scores = score()
                self._batch, self._left = batch, set(self._models)
            assert self._scores is not None
            scores = self._scores
            self._left.discard(model)
            if not self._left:
                self._batch, self._scores = (), None
            return scores


@dataclass(frozen=True, slots=True)
class RewardClient:
    """The clients and the reader that settings describe."""

    settings: ClientSettings
    client: ScoringClient
    async_client: AsyncScoringClient
    reader: ConversationReader = field(default_factory=ConversationReader)

    def score(self, items: Sequence[Item], prompts: Sequence[Any] = ()) -> Scores:
        """Score items in one call; see `ConversationReader.score`."""
        return self.reader.score(self.client, items, prompts)

    async def score_async(self, items: Sequence[Item]) -> Scores:
        """Score items in one call; like `score`, for event loops."""
        return await self.reader.score_async(self.async_client, items)


def get_reward_client(**overrides: Any) -> RewardClient:
    """Return the client for `SKYREWARD_CLIENT_*` and overrides, which take precedence.

    Clients are cached: equal settings return the same client.

    Raises:
        ServiceError: a setting is unknown or has an invalid value.
    """
    return _build_reward_client(ClientSettings.load(**overrides))


@functools.cache
def _build_reward_client(settings: ClientSettings) -> RewardClient:
    options: dict[str, Any] = {
        "api_key": settings.api_key and settings.api_key.get_secret_value(),
        "retry_timeout_s": settings.retry_s,
        "timeout_s": settings.timeout_s,
        "max_answer_bytes": settings.max_answer_bytes,
        "max_concurrency": settings.num_posts,
    }
    reader = ConversationReader(
        truncation=settings.truncation,
        policy_template=settings.policy_template,
        on_error=settings.on_error,
        failed_reward=settings.failed_reward,
        aggregation=settings.aggregation,
        models=settings.models,
        combine=dict(settings.combine),
        calibrated=settings.calibrated,
        clip=settings.clip,
    )
    client = ScoringClient(settings.urls, settings.model, **options)
    async_client = AsyncScoringClient(settings.urls, settings.model, **options)
    return RewardClient(settings, client, async_client, reader)


def score(conversations: Sequence[Conversation]) -> list[float]:
    """Return the reward of each conversation from the service that `SKYREWARD_CLIENT_*` names.

    Raises:
        ScoringFailedError: some conversations have no reward; the error names them and holds the
            rewards of the others.
        ServiceError: a whole request failed.
    """
    client = get_reward_client()
    client.reader.require_on_error("score()")
    return client.score(conversations).get_numbers()


def _log_warnings(warnings: Sequence[str]) -> None:
    """Log the first warning of each kind, because trainers receive only numbers."""
    for warning in warnings:
        kind = warning.partition(":")[0]
        if kind not in _LOGGED_KINDS:
            _LOGGED_KINDS.add(kind)
            logger.warning("%s (the first warning of this kind; others are not logged)", warning)


def with_tools(conversation: Any, tools: Any) -> Any:
    """Return a conversation with a row's tools, unless it has tools or the row has none."""
    tools = _to_list(tools)
    if isinstance(tools, str) and not tools.strip():
        return conversation
    return add_tools(conversation, tools)


def build_chat(messages: Sequence[Any], tools: Any = None) -> Item:
    """Return the conversation of messages whose calls have `arguments` as JSON text, with tools."""
    try:
        item: Item = with_tools(parse_arguments([*messages]), tools)
    except InvalidConversationError as error:
        return ScoreError.from_exception(error)
    return item


def get_column(columns: Mapping[str, Any], name: str, num_rows: int) -> Sequence[Any]:
    """Return a column that a trainer passes by keyword; without it, None for each row."""
    values = _to_list(columns.get(name))
    if values is None:
        return [None] * num_rows
    if not isinstance(values, list | tuple) or len(values) != num_rows:
        raise ServiceError(f"the column {name!r} must have one value for each of {num_rows} rows")
    return values


def _to_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _to_messages(value: Any, role: str) -> list[Any]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [value] if isinstance(value, Mapping) else list(value)


def _find_template_error(prompt: str) -> ScoreError | None:
    markers = find_markers(prompt)
    if not markers:
        return None
    return ScoreError(
        "foreign_template",
        f"the prompt has {', '.join(markers)}: the policy's chat template rendered it. Set "
        f"policy_template ({', '.join(TEMPLATES[1:])}) so that the turns can be parsed, or give "
        "prompts as messages",
    )
