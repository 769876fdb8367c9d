"""Reads columns of published rows, strictly: each has the type it has in the published data.

Errors name the file, the id where there is one, the column, what came and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from rm_core.errors import BenchmarkDataError, InvalidConversationError
from rm_core.inputs.conversations import Messages, validate_unicode

MAX_NAMED = 12
MAX_QUOTED = 60


class StrictRow:
    """One row and where it is from.

    Args:
        columns: of the row.
        origin: path of its file, for errors.
        id_column: the column of its id, which is required.

    Raises:
        BenchmarkDataError: the row is no mapping, or its id is missing, empty or no text or number.
    """

    def __init__(self, columns: Mapping[str, Any], origin: str, id_column: str = "id") -> None:
        self._columns = columns
        self._where = origin or "the data"
        if not isinstance(columns, Mapping):
            self.refuse(
                f"a row is {describe_value(columns)}; rows are objects with columns by name"
            )
        value = self.get(id_column)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # Whole numbers beside nulls are read as floats by some tools.
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            self._refuse_value(id_column, value, "text or a whole number")
        self.id = str(value)
        self._where += f", {id_column} {quote(self.id)}"

    def get(self, name: str) -> Any:
        """A column as it is; null where it is not there.

        Args:
            name: of the column; `a.b` is `b` inside `a`.
        """
        value: Any = self._columns
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def get_text(self, name: str) -> str:
        """A column of text; an empty text is one.

        Raises:
            BenchmarkDataError: it is missing, or no valid text.
        """
        value = self.get(name)
        if not isinstance(value, str):
            self._refuse_value(name, value, "text")
        return self._validate_text(value, name)

    def get_texts(self, name: str) -> tuple[str, ...]:
        """A column of a list of texts, at least one.

        Raises:
            BenchmarkDataError: it is missing, empty, or another thing.
        """
        value = self.get_list(name)
        for item in value:
            if not isinstance(item, str):
                self._refuse_value(name, item, "texts", "an item of ")
        return tuple(self._validate_text(item, name) for item in value)

    def get_nested_texts(self, name: str, inner: str) -> tuple[str, ...]:
        """A column of a list of objects, each with a text under the same name.

        Raises:
            BenchmarkDataError: it is missing, empty, or another thing.
        """
        texts = []
        for item in self.get_list(name):
            value = item.get(inner) if isinstance(item, Mapping) else item
            if not isinstance(value, str):
                self._refuse_value(f"{name}.{inner}", value, "text", "an item of ")
            texts.append(self._validate_text(value, name))
        return tuple(texts)

    def get_list(self, name: str, *, may_be_empty: bool = False) -> Sequence[Any]:
        """A column of a list, at least one item long unless it may be empty.

        Raises:
            BenchmarkDataError: it is missing, empty, or no list.
        """
        value = self.get(name)
        if not isinstance(value, list | tuple):
            self._refuse_value(name, value, "a list")
        if not value and not may_be_empty:
            self.refuse(f"the column `{name}` is an empty list")
        return value

    def get_whole_number(self, name: str) -> int:
        """A column of a whole number of at least 0.

        Raises:
            BenchmarkDataError: it is missing, or no such number.
        """
        return self.to_whole_number(self.get(name), name)

    def to_whole_number(self, value: object, name: str) -> int:
        """A value of a column as a whole number of at least 0.

        Raises:
            BenchmarkDataError: it is none.
        """
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            self._refuse_value(name, value, "a whole number of at least 0")
        return value

    def to_number(self, value: object, name: str) -> float:
        """A value of a column as a finite number; a boolean is 0 or 1.

        Raises:
            BenchmarkDataError: it is none.
        """
        if not isinstance(value, int | float) or not math.isfinite(value):
            self._refuse_value(name, value, "a finite number")
        return float(value)

    def get_choice(self, name: str, allowed: Iterable[str]) -> str:
        """A column of one of some words.

        Raises:
            BenchmarkDataError: it is another.
        """
        value, allowed = self.get(name), list(allowed)
        if value not in allowed:
            self._refuse_value(name, value, format_names(allowed))
        return str(value)

    def get_user_message(self, name: str) -> Messages:
        """A column of text as the message of a user."""
        return [{"role": "user", "content": self.get_text(name)}]

    def get_messages(self, name: str) -> Messages:
        """A column of messages as `role` and `content`, the last one a user's.

        Raises:
            BenchmarkDataError: it is another thing.
        """
        turns: Messages = []
        for turn in self.get_list(name):
            content = turn.get("content") if isinstance(turn, Mapping) else None
            role = turn.get("role") if isinstance(turn, Mapping) else None
            if not isinstance(content, str) or role not in ("system", "user", "assistant"):
                self._refuse_value(name, turn, "messages with `role` and `content`", "an item of ")
            turns.append({"role": role, "content": self._validate_text(content, name)})
        if turns[-1]["role"] != "user":
            self.refuse(
                f"the last message of `{name}` is of role {turns[-1]['role']!r}; it is what is "
                "answered, so it must be the user's"
            )
        return turns

    def refuse(self, reason: str) -> NoReturn:
        """Refuse the row.

        Raises:
            BenchmarkDataError: always.
        """
        raise BenchmarkDataError(f"{self._where}: {reason}")

    def _validate_text(self, text: str, name: str) -> str:
        try:
            return validate_unicode(text, f"`{name}`")
        except InvalidConversationError as error:
            self.refuse(error.detail)

    def _refuse_value(self, name: str, value: object, allowed: str, what: str = "") -> NoReturn:
        if value is None and name.split(".")[0] not in self._columns:
            there = format_names([f"`{column}`" for column in map(str, self._columns)])
            self.refuse(f"there is no column `{name}`; there is {there}")
        self.refuse(f"{what}the column `{name}` is {describe_value(value)}; it must be {allowed}")


def format_names(names: Sequence[str]) -> str:
    """Names for a message: the first of many."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return (", ".join(names[:MAX_NAMED]) + more) or "nothing"


def quote(value: str) -> str:
    """A text of the data for a message, not too long."""
    return repr(value if len(value) <= MAX_QUOTED else value[: MAX_QUOTED - 3] + "...")


def describe_value(value: object) -> str:
    """What a value is, for a message."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, bool | int | float):
        return repr(value)
    names: dict[type, str] = {dict: "an object", list: "a list", tuple: "a list"}
    return names.get(type(value), f"a {type(value).__name__}")
