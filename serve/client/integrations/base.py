"""Shared code of the reward functions: a trainer's prompts and answers in, rewards out.

A conversation that cannot be scored raises an error that names it, unless the user set a reward
for such conversations. A reward is never None, because trainers would silently ignore it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, get_args

from rm_core import (
    Aggregation,
    ChatFormatName,
    InvalidConversationError,
    Reward,
    ScoreError,
    Truncation,
    add_tools,
    read_turns,
    strip_end,
)
from rm_core.inputs.chat_formats import find_markers
from rm_core.types import Conversation
from serve.client.async_client import AsyncScoringClient
from serve.client.errors import ScoringFailedError, ServiceError
from serve.client.image_places import fill_places, has_images
from serve.client.responses import RankedResponse
from serve.client.settings import ClientSettings, PolicyTemplate
from serve.client.sync_client import ScoringClient

logger = logging.getLogger("serve.client")

Item: TypeAlias = Conversation | ScoreError

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
        failed_reward: reward of a conversation that cannot be scored; None: raise an error.
        aggregation: how a step model's rewards of steps become the reward.
    """

    truncation: Truncation = "error"
    policy_template: PolicyTemplate = "none"
    failed_reward: float | None = None
    aggregation: Aggregation = "last"

    def __post_init__(self) -> None:
        if self.policy_template not in TEMPLATES:
            raise ServiceError(
                f"policy_template {self.policy_template!r} is unknown; the choices are: "
                f"{', '.join(TEMPLATES)}"
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
                Unused if the prompt's messages have images, and for a prompt that the policy's
                template rendered.
        """
        prompt, answer = _to_list(prompt), _to_list(answer)
        if isinstance(prompt, str) and isinstance(answer, str):
            if self.policy_template != "none":
                return self.parse_conversation(prompt + answer, prompt)
            if template_error := _find_template_error(prompt):
                return template_error
        messages = _to_messages(prompt, "user")
        images = [] if images is None or has_images(messages) else _to_list(images)
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

    def extract_rewards(
        self, results: Sequence[Reward | RankedResponse | ScoreError]
    ) -> list[float]:
        """Return the reward of each result, in order.

        Raises:
            ScoringFailedError: some results are errors, and `failed_reward` is None.
        """
        for result in results:
            if not isinstance(result, ScoreError):
                _log_warnings(result.warnings)
        failed = [(i, r) for i, r in enumerate(results) if isinstance(r, ScoreError)]
        if not failed:
            return [r.reward for r in results if not isinstance(r, ScoreError)]
        if self.failed_reward is None:
            raise ScoringFailedError.from_results(results)
        reasons = "; ".join(f"{i}: {r.code}: {r.message}" for i, r in failed[:_MAX_MESSAGES])
        logger.warning(
            "%d of %d conversations cannot be scored and get %g: %s",
            len(failed),
            len(results),
            self.failed_reward,
            reasons,
        )
        return [self.failed_reward if isinstance(r, ScoreError) else r.reward for r in results]


@dataclass(frozen=True, slots=True)
class RewardClient:
    """The clients and the reader that settings describe.

    Attributes:
        settings: settings of the clients and the reader.
        client: client for batches.
        async_client: client for many concurrent single conversations.
        reader: reader of prompts and answers.
    """

    settings: ClientSettings
    client: ScoringClient
    async_client: AsyncScoringClient
    reader: ConversationReader = field(default_factory=ConversationReader)

    def score(self, items: Sequence[Item]) -> list[float]:
        """Return the reward of each item, in order.

        Raises:
            ScoringFailedError: see `ConversationReader.extract_rewards`.
            ServiceError: a whole request failed.
        """
        reader = self.reader
        return reader.extract_rewards(
            self.client.results(items, reader.truncation, aggregation=reader.aggregation)
        )

    async def score_async(self, items: Sequence[Item]) -> list[float]:
        """Return the reward of each item, in order; like `score`, for event loops."""
        reader = self.reader
        results = await self.async_client.results(
            items, reader.truncation, aggregation=reader.aggregation
        )
        return reader.extract_rewards(results)


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
        failed_reward=settings.failed_reward,
        aggregation=settings.aggregation,
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
    return get_reward_client().score(conversations)


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


def get_column(columns: Mapping[str, Any], name: str, num_rows: int) -> Sequence[Any]:
    """Return the values of a column that a trainer passes by keyword; None for each row without it.

    Raises:
        ServiceError: the number of values is not the number of rows.
    """
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
