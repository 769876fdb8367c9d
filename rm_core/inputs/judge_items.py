"""Input of a judge: a prompt and two answers in one order. Validated without a tokenizer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from rm_core.errors import InvalidConversationError
from rm_core.inputs.conversations import ChatJson, Messages, parse_chat, parse_pair


@dataclass(frozen=True, slots=True)
class JudgePair:
    """Two answers to one prompt, in the order in which the judge reads them.

    Attributes:
        prompt: a text, or messages.
        first: the first answer.
        second: the second answer.
    """

    prompt: str | Messages
    first: str
    second: str

    def swap(self) -> JudgePair:
        """Return the pair in the other order."""
        return JudgePair(self.prompt, self.second, self.first)


def parse_judge_pair(value: object) -> JudgePair:
    """Validate a preference pair, as `parse_pair`; its chosen answer comes first.

    Raises:
        InvalidConversationError: the shape is wrong, or see `build_judge_pair`.
    """
    chosen, rejected = parse_pair(value)
    return build_judge_pair(chosen, rejected)


def build_judge_pair(first: ChatJson, second: ChatJson) -> JudgePair:
    """Return the pair of the last turns of two conversations.

    Args:
        first: conversation whose last turn is the first answer.
        second: conversation with the same messages before its last turn.

    Raises:
        InvalidConversationError: the prompts differ or are empty, or there are tools.
    """
    chats = [parse_chat(conversation) for conversation in (first, second)]
    prompts = [chat.messages[:-1] for chat in chats]
    answers = [chat.messages[-1] for chat in chats]
    if prompts[0] != prompts[1]:
        raise InvalidConversationError(
            "the two conversations differ before the last turn; a judge compares two answers to "
            "one prompt: give both the same messages before the answer"
        )
    if not prompts[0]:
        raise InvalidConversationError(
            "the conversations are only answers; give the prompt that they answer"
        )
    if any(chat.tools for chat in chats) or any(answer.get("tool_calls") for answer in answers):
        raise InvalidConversationError(
            "the conversations have tools or tool calls, which a judge does not read; send the "
            "answers as text"
        )
    return JudgePair(prompts[0], answers[0]["content"], answers[1]["content"])


def list_judge_pairs(conversations: Sequence[ChatJson]) -> list[tuple[int, int, JudgePair]]:
    """Return every pair of answers to one prompt in both orders.

    Args:
        conversations: conversations that differ in their last turn.

    Returns:
        Index of the first answer, index of the second, and the pair; n * (n - 1) of them. Pairs of
        the same two answers are next to each other.

    Raises:
        InvalidConversationError: see `build_judge_pair`.
    """
    pairs = []
    for first, second in itertools.combinations(range(len(conversations)), 2):
        pair = build_judge_pair(conversations[first], conversations[second])
        pairs += [(first, second, pair), (second, first, pair.swap())]
    return pairs
