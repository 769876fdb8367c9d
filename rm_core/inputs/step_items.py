"""Input of a step model: a problem, and its solution in steps. Validated without a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rm_core.errors import InvalidConversationError
from rm_core.inputs.conversations import Messages, parse_prompt, split_answer, validate_unicode
from rm_core.text import describe_type, format_keys
from rm_core.types import PrerenderedText, PrerenderedTokens

_KEYS = ("prompt", "steps", "response")


@dataclass(frozen=True, slots=True)
class StepItem:
    """A problem and its solution.

    Attributes:
        prompt: the problem: a text, or messages.
        steps: the steps of the solution, at least one, taken as they are. Each gets one value, also
            if it contains what separates the steps of a `response`.
        response: the solution as one text, which is divided as the model's authors do.

    Raises:
        InvalidConversationError: both or neither of `steps` and `response` are given, they are not
            texts, or `steps` is empty.
    """

    prompt: str | Messages
    steps: tuple[str, ...] | None = None
    response: str | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.response is None):
            number, verb = ("neither", "is") if self.steps is None else ("both", "are")
            raise InvalidConversationError(
                f"{number} of `steps` and `response` {verb} given; give `steps` (a list of texts), "
                "or `response` (one text, which is divided into steps)"
            )
        if self.steps is not None and not self.steps:
            raise InvalidConversationError(
                "`steps` is empty; give at least one step, since every step gets a value"
            )
        if self.steps is not None:
            _check_steps(self.steps)
        elif not isinstance(self.response, str):
            raise InvalidConversationError(
                f"`response` is {describe_type(self.response)}; it must be a string, or give a "
                "list of `steps`"
            )
        else:
            validate_unicode(self.response, "`response`")


def parse_step_item(value: object) -> StepItem:
    """Validate an object with `prompt`, and `steps` or `response`."""
    if not isinstance(value, Mapping):
        raise InvalidConversationError(
            f"the item is {describe_type(value)}; it must be an object with `prompt`, and with "
            "`response` (one text) or `steps` (a list of texts)"
        )
    unknown = sorted(str(key) for key in value if key not in _KEYS)
    if unknown:
        raise InvalidConversationError(
            f"the item has the unknown keys {format_keys(unknown)}; allowed: {format_keys(_KEYS)}"
        )
    if value.get("prompt") is None:
        raise InvalidConversationError(
            "the item has no `prompt`; give the problem that the steps solve"
        )
    prompt, steps = parse_prompt(value["prompt"]), value.get("steps")
    return StepItem(
        prompt, tuple(steps) if isinstance(steps, list) else steps, value.get("response")
    )


def parse_solution(conversation: object) -> StepItem:
    """Read unvalidated messages as a problem and its solution, which is the last turn."""
    if isinstance(conversation, PrerenderedText | PrerenderedTokens):
        raise InvalidConversationError(
            "the input is rendered text or token ids, in which a step model cannot tell where "
            "steps end; send messages, or `prompt` with `response` or `steps`"
        )
    names = ("problem that it solves", "solution")
    prompt, solution = split_answer(conversation, "a step model", names)
    return StepItem(prompt, response=solution)


def _check_steps(steps: object) -> None:
    if not isinstance(steps, tuple):
        raise InvalidConversationError(
            f"`steps` is {describe_type(steps)}; it must be a list of texts, one for each step"
        )
    for index, step in enumerate(steps):
        if not isinstance(step, str):
            raise InvalidConversationError(
                f"step {index} is {describe_type(step)}; every step must be a string"
            )
        validate_unicode(step, f"step {index}")
