"""Input of a judge: a prompt and two answers in one order. Validated without a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rm_core.errors import InvalidConversationError
from rm_core.inputs.conversations import ChatJson, Messages, parse_pair, split_answer


@dataclass(frozen=True, slots=True)
class JudgePair:
    """Two answers to one prompt, in the order in which the judge reads them."""

    prompt: str | Messages
    first: str
    second: str

    def swap(self) -> JudgePair:
        """Return the pair in the other order."""
        return JudgePair(self.prompt, self.second, self.first)


class JudgeAnswer(NamedTuple):
    """An answer of a pair that a judge will read, and its prompt."""

    prompt: Messages
    text: str


def parse_judge_pair(value: object) -> JudgePair:
    """Validate a preference pair, as `parse_pair`; its chosen answer comes first."""
    chosen, rejected = parse_pair(value)
    return build_judge_pair(chosen, rejected)


def build_judge_pair(first: ChatJson, second: ChatJson) -> JudgePair:
    """Return the pair of the last turns of two conversations that are otherwise the same."""
    return pair_answers(parse_judge_answer(first), parse_judge_answer(second))


def parse_judge_answer(conversation: ChatJson) -> JudgeAnswer:
    """Return the last turn of a conversation, and what it answers."""
    names = ("prompt that it answers", "answer")
    return JudgeAnswer(*split_answer(conversation, "a judge", names))


def pair_answers(first: JudgeAnswer, second: JudgeAnswer) -> JudgePair:
    """Return the pair of two answers, if their prompts are equal."""
    if first.prompt is not second.prompt and first.prompt != second.prompt:
        raise InvalidConversationError(
            "the two conversations differ before the last turn; a judge compares two answers to "
            "one prompt: give both the same messages before the answer"
        )
    return JudgePair(first.prompt, first.text, second.text)
