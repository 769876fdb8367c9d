"""What a job scores: chats, solutions of a step model, or pairs of a judge.

Chats are read from many formats by `serve.jobs.record_reader`. The readers here take the one format
in which `serve.evaluation` writes its items: a prompt, and the responses to it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from rm_core.inputs.conversations import ChatJson
from rm_core.inputs.judge_items import JudgePair
from rm_core.inputs.step_items import StepItem

ScoringInput: TypeAlias = ChatJson | StepItem | JudgePair
"""What an executor scores: the input of a classifier or a step model, of a step model, of a judge.
"""
InputKind: TypeAlias = Literal["chats", "steps", "pairs"]
"""Which inputs a job makes of a record."""

# Keys are not sorted: templates render functions and their arguments in the order of the keys.
_canonical = json.JSONEncoder(separators=(",", ":"), default=dataclasses.astuple).encode


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
