"""A placeholder of every answer, for which a chat template is rendered once.

A template is a program, and may write a prompt differently for another answer. This text records
all that a template finds out about the answer. What the template writes is then known for each
answer about which it would find out the same, and a prompt is rendered once for all its answers.

A template may write the answer once, remove characters at its ends, and ask whether it contains,
begins with, ends with or equals a text. Everything else raises `UnprovenError`. Functions in C
would read the placeholder, so the sandbox of `chat_template` keeps the text from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partialmethod
from typing import Any, NoReturn, TypeAlias

_PLACEHOLDER = "AnswerOfTheAssistant7Qx1vK9zWmJ4"
# Filters that may get the answer, and filters that may get a list or mapping that contains it.
_TEXT_FILTERS = frozenset({"trim", "string", "default", "d"})
_CONTAINER_FILTERS = frozenset({"length", "count", "first", "last", "list", "default", "d"})

# Methods of `str` that remove characters at the ends, each with its argument, in order.
_Strips: TypeAlias = tuple[tuple[str, str | None], ...]


class UnprovenError(Exception):
    """The template does something with the answer after which nothing is proven."""


class AnswerText(str):
    """Any answer, with what the template has written around it.

    Each question of the template gets False, also whether the answer is empty.
    """

    _before: str
    _after: str
    _strips: _Strips
    # What the template asked: the strips before, the method of `str`, and its argument.
    _questions: dict[tuple[_Strips, str, str], None]

    def __new__(cls) -> AnswerText:
        """Return any answer alone."""
        return _create("", "", (), {})

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> AnswerText:
        return _surround("", self, other)

    def __radd__(self, other: str) -> AnswerText:
        return _surround(other, self, "")

    def __contains__(self, text: Any, /) -> bool:
        return _ask(self, "__contains__", text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and _ask(self, "__eq__", other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        return bool(self._before or self._after) or not _ask(self, "__eq__", "")

    def __hash__(self) -> int:
        raise UnprovenError


def write_answer(around: AnswerText, answer: str) -> str | None:
    """Return what the template writes with an answer; None if the template may decide otherwise."""
    stripped: dict[_Strips, str] = {}
    for strips, method, argument in around._questions:
        if strips not in stripped:
            stripped[strips] = _apply(strips, answer)
        if getattr(stripped[strips], method)(argument):
            return None
    return around._before + _apply(around._strips, answer) + around._after


def get_surroundings(around: AnswerText) -> tuple[str, str]:
    """Return what the template writes before and after the answer."""
    return around._before, around._after


def join_texts(texts: Sequence[str]) -> str:
    """Join texts, of which one may contain the answer."""
    positions = [i for i, text in enumerate(texts) if isinstance(text, AnswerText)]
    if not positions:
        return "".join(texts)
    first, *others = positions
    if others:
        raise UnprovenError
    answer = texts[first]
    assert isinstance(answer, AnswerText)
    return _surround("".join(texts[:first]), answer, "".join(texts[first + 1 :]))


def require_allowed_filter(name: str, subject: object, others: Sequence[object]) -> None:
    """Raise `UnprovenError` if a filter might read the answer in its arguments."""
    allowed = _TEXT_FILTERS if isinstance(subject, AnswerText) else _CONTAINER_FILTERS
    require_absent(others if name in allowed else (subject, *others))


def require_allowed_call(function: object, arguments: object) -> None:
    """Raise `UnprovenError` if a function might read the answer in its arguments."""
    from jinja2.runtime import Macro
    from jinja2.utils import Namespace

    is_namespace = isinstance(function, type) and issubclass(function, Namespace)
    if not (is_namespace or isinstance(function, Macro)):
        require_absent(arguments)


class _Searched:
    """A text in which the template may search everything but the answer."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __contains__(self, text: Any) -> bool:
        require_absent(text)
        return text in self._text


def guard_search(container: Any) -> Any:
    """Return the right operand of `in`, or something that can be searched in the same way."""
    is_plain = isinstance(container, str) and not isinstance(container, AnswerText)
    return _Searched(container) if is_plain else container


def require_absent(value: object) -> None:
    """Raise `UnprovenError` if the answer is in a value, at any depth."""
    from jinja2 import Undefined

    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, AnswerText):
            raise UnprovenError
        if isinstance(node, Mapping):
            stack += node.values()
        elif isinstance(node, list | tuple):
            stack += node
        elif not isinstance(node, str | int | float | Undefined | None):
            raise UnprovenError  # such as a generator, which can only be read once


def require_proven(text: str) -> AnswerText:
    """Return a rendered text that has the answer once, if nothing has read the placeholder."""
    if not isinstance(text, AnswerText):
        raise UnprovenError
    if _PLACEHOLDER.casefold() in (text._before + text._after).casefold():
        raise UnprovenError
    return text


def _create(
    before: str, after: str, strips: _Strips, questions: dict[tuple[_Strips, str, str], None]
) -> AnswerText:
    text = str.__new__(AnswerText, _PLACEHOLDER)
    text._before, text._after, text._strips, text._questions = before, after, strips, questions
    return text


def _surround(before: str, text: AnswerText, after: str) -> AnswerText:
    if type(before) is not str or type(after) is not str:
        raise UnprovenError
    return _create(before + text._before, text._after + after, text._strips, text._questions)


def _strip(text: AnswerText, method: str, chars: str | None = None) -> AnswerText:
    _require_alone(text, chars or "")
    return _create("", "", (*text._strips, (method, chars)), text._questions)


def _ask(text: AnswerText, method: str, argument: str) -> bool:
    _require_alone(text, argument)
    text._questions[text._strips, method, argument] = None
    return False


def _require_alone(text: AnswerText, argument: str) -> None:
    if text._before or text._after or type(argument) is not str:
        raise UnprovenError


def _apply(strips: _Strips, answer: str) -> str:
    for method, chars in strips:
        answer = getattr(answer, method)(chars)
    return answer


def _refuse(*arguments: Any, **options: Any) -> NoReturn:
    raise UnprovenError


for _name in ("strip", "lstrip", "rstrip"):
    setattr(AnswerText, _name, partialmethod(_strip, _name))
for _name in ("startswith", "endswith"):
    setattr(AnswerText, _name, partialmethod(_ask, _name))
# All other methods of `str`, except those of every object and the length, which only limits need.
for _name in {*dir(str)} - {*vars(AnswerText), *dir(object), "__len__", "__getnewargs__"}:
    setattr(AnswerText, _name, _refuse)
for _name in ("__lt__", "__le__", "__gt__", "__ge__", "__repr__", "__format__"):
    setattr(AnswerText, _name, _refuse)
