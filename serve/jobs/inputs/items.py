"""What a job scores: chats, solutions of a step model, or pairs of a judge.

Records are read from many formats by `serve.jobs.record_reader`. `list_solutions` and `list_pairs`
take the one format in which `serve.evaluation` writes its items: a prompt, and the responses to it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from rm_core import InputError, InvalidConversationError, ScoreError
from rm_core.inputs.conversations import ChatJson
from rm_core.inputs.judge_items import JudgeAnswer, JudgePair, pair_answers, parse_judge_answer
from rm_core.inputs.step_items import StepItem

ScoringInput: TypeAlias = ChatJson | StepItem | JudgePair
"""What an executor scores: the input of a classifier or a step model, of a step model, of a judge.
"""
InputKind: TypeAlias = Literal["chats", "steps", "pairs"]
"""Which inputs a job makes of a record."""

MAX_JUDGED_ANSWERS = 128
"""A judge reads n * (n - 1) texts for a group of n answers."""


def _to_json(value: Any) -> Any:
    """Return JSON data for an image, which is its digest, or for a dataclass."""
    if isinstance(value, bytes):
        return {"blake2b": hashlib.blake2b(value, digest_size=16).hexdigest()}
    return dataclasses.astuple(value)


# Keys are not sorted: templates render functions and their arguments in the order of the keys.
_canonical = json.JSONEncoder(separators=(",", ":"), default=_to_json).encode


def compute_digest(value: ScoringInput) -> bytes:
    """Return a digest of 16 bytes, equal for inputs that every model reads equally."""
    return hashlib.blake2b(_canonical(value).encode(), digest_size=16).digest()


def list_solutions(record: Mapping[str, Any]) -> list[StepItem]:
    """Return the only solution of a record, whose responses are its steps."""
    return [StepItem(record["prompt"], tuple(record["responses"]))]


def list_pairs(record: Mapping[str, Any]) -> list[JudgePair]:
    """Return each pair of `preferences` in ascending order, and in the order swapped."""
    responses = record["responses"]
    return [
        JudgePair(record["prompt"], responses[first], responses[second])
        for pair in sorted({(min(pair), max(pair)) for pair in record["preferences"]})
        for first, second in (pair, pair[::-1])
    ]


def list_orders(
    answers: Sequence[ChatJson | ScoreError], *, both_orders: bool = True
) -> list[JudgePair | ScoreError]:
    """Return each pair of answers in ascending order, and in the order swapped unless excluded.

    An answer that cannot be read gives its error in place of each of its pairs.

    Raises:
        InvalidConversationError: there are too few or too many answers.
    """
    num_answers = len(answers)
    if not 2 <= num_answers <= MAX_JUDGED_ANSWERS:
        raise InvalidConversationError(
            "a judge compares every pair of responses in both orders, and this group has "
            f"{num_answers} ({num_answers * (num_answers - 1):,} texts); give 2 to "
            f"{MAX_JUDGED_ANSWERS} responses"
        )
    read = [one if isinstance(one, ScoreError) else _parse_answer(one) for one in answers]
    orders: list[JudgePair | ScoreError] = []
    for first, second in itertools.combinations(read, 2):
        pair = _build_pair(first, second)
        swapped = pair.swap() if isinstance(pair, JudgePair) else pair
        orders += [pair, swapped] if both_orders else [pair]
    return orders


def _parse_answer(conversation: ChatJson) -> JudgeAnswer | ScoreError:
    try:
        return parse_judge_answer(conversation)
    except InputError as error:
        return ScoreError.from_exception(error)


def _build_pair(
    first: JudgeAnswer | ScoreError, second: JudgeAnswer | ScoreError
) -> JudgePair | ScoreError:
    if isinstance(first, ScoreError):
        return first
    if isinstance(second, ScoreError):
        return second
    try:
        return pair_answers(first, second)
    except InputError as error:
        return ScoreError.from_exception(error)
