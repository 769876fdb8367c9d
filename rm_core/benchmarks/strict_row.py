"""Reads columns of published rows strictly: every column must have its published type.

Errors name the file, the id if there is one, the column, the value and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from rm_core.errors import BenchmarkDataError, InvalidConversationError
from rm_core.inputs.conversations import Messages, validate_unicode
from rm_core.text import describe_type, format_keys, format_names, quote

_MAX_NAMES = 12


class StrictRow:
    """One row and its origin.

    Args:
        columns: columns of the row by name.
        origin: path of the row's file, for error messages.
        id_column: name of the id column, which is required.

    Raises:
        BenchmarkDataError: the row is not a mapping, or its id is missing, empty, or neither text
            nor a whole number.
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
            value = int(value)  # Some tools read a column of integers and nulls as floats.
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            self._refuse_value(id_column, value, "text or a whole number")
        self.id = str(value)
        self._where += f", {id_column} {quote(self.id)}"

    def get(self, name: str) -> Any:
        """Return a column unchecked; None if the column is missing.

        Args:
            name: name of the column; `a.b` is `b` inside `a`.
        """
        value: Any = self._columns
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def get_text(self, name: str) -> str:
        """Return a text column; the text may be empty.

        Raises:
            BenchmarkDataError: the column is missing, or not valid text.
        """
        value = self.get(name)
        if not isinstance(value, str):
            self._refuse_value(name, value, "text")
        return self.validate_text(value, name)

    def get_texts(self, name: str) -> tuple[str, ...]:
        """Return a column that is a list of at least one text.

        Raises:
            BenchmarkDataError: the column is missing, empty, or not a list of texts.
        """
        value = self.get_list(name)
        for item in value:
            if not isinstance(item, str):
                self._refuse_value(name, item, "text", "an item of ")
        return tuple(self.validate_text(item, name) for item in value)

    def get_nested_texts(self, name: str, inner: str) -> tuple[str, ...]:
        """Return the text `inner` of each object in a column that is a list of objects.

        Raises:
            BenchmarkDataError: the column is missing, empty, or not a list of such objects.
        """
        texts = []
        for item in self.get_list(name):
            value = item.get(inner) if isinstance(item, Mapping) else item
            if not isinstance(value, str):
                self._refuse_value(f"{name}.{inner}", value, "text", "an item of ")
            texts.append(self.validate_text(value, name))
        return tuple(texts)

    def get_list(self, name: str, *, may_be_empty: bool = False) -> Sequence[Any]:
        """Return a list column, with at least one item unless `may_be_empty`.

        Raises:
            BenchmarkDataError: the column is missing, empty, or not a list.
        """
        value = self.get(name)
        if not isinstance(value, list | tuple):
            self._refuse_value(name, value, "a list")
        if not value and not may_be_empty:
            self.refuse(f"the column `{name}` is an empty list")
        return value

    def get_whole_number(self, name: str) -> int:
        """Return a column that is a whole number of at least 0.

        Raises:
            BenchmarkDataError: the column is missing, or not such a number.
        """
        return self.to_whole_number(self.get(name), name)

    def to_whole_number(self, value: object, name: str) -> int:
        """Convert a value of the column `name` to a whole number of at least 0.

        Raises:
            BenchmarkDataError: the value is not such a number.
        """
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            self._refuse_value(name, value, "a whole number of at least 0")
        return value

    def to_number(self, value: object, name: str) -> float:
        """Convert a value of the column `name` to a finite number; a boolean becomes 0 or 1.

        Raises:
            BenchmarkDataError: the value is not a finite number.
        """
        if not isinstance(value, int | float) or not math.isfinite(value):
            self._refuse_value(name, value, "a finite number")
        return float(value)

    def get_choice(self, name: str, allowed: Iterable[str]) -> str:
        """Return a column that has one of the allowed values.

        Raises:
            BenchmarkDataError: the column is missing or has another value.
        """
        value, allowed = self.get(name), list(allowed)
        if value not in allowed:
            self._refuse_value(name, value, format_names(allowed, _MAX_NAMES))
        return str(value)

    def get_user_message(self, name: str) -> Messages:
        """Return a text column as a single user message."""
        return [{"role": "user", "content": self.get_text(name)}]

    def get_image(self, name: str) -> bytes | str:
        """Return a column that is an image, not decoded: the bytes of a file, or text.

        The `Image` feature of `datasets` is an object with `bytes` and `path`, one of which may be
        null.

        Raises:
            BenchmarkDataError: the column is missing, empty, or has another value.
        """
        value = self.get(name)
        source = value
        if isinstance(value, Mapping):
            source = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(source, bytes) and source:
            return source
        if isinstance(source, str) and source:
            return self.validate_text(source, name)
        allowed = (
            "the bytes of an image, an object with `bytes` or `path`, or text: a path, a data URI "
            "or base64"
        )
        self._refuse_value(name, value if source is None else source, allowed)

    def get_messages(self, name: str) -> Messages:
        """Return a column of messages with `role` and `content`; the last is a user message.

        Raises:
            BenchmarkDataError: the column is missing or not a list of such messages.
        """
        turns: Messages = []
        for turn in self.get_list(name):
            content = turn.get("content") if isinstance(turn, Mapping) else None
            role = turn.get("role") if isinstance(turn, Mapping) else None
            if not isinstance(content, str) or role not in ("system", "user", "assistant"):
                self._refuse_value(name, turn, "a message with `role` and `content`", "an item of ")
            turns.append({"role": role, "content": self.validate_text(content, name)})
        if turns[-1]["role"] != "user":
            self.refuse(
                f"the last message of `{name}` has the role {turns[-1]['role']!r}; the responses "
                "answer it, so its role must be 'user'"
            )
        return turns

    def refuse(self, reason: str) -> NoReturn:
        """Refuse the row.

        Raises:
            BenchmarkDataError: always.
        """
        raise BenchmarkDataError(f"{self._where}: {reason}")

    def validate_text(self, text: str, name: str) -> str:
        """Return a text of the column `name`.

        Raises:
            BenchmarkDataError: the text is not valid Unicode.
        """
        try:
            return validate_unicode(text, f"`{name}`")
        except InvalidConversationError as error:
            self.refuse(error.detail)

    def _refuse_value(self, name: str, value: object, allowed: str, prefix: str = "") -> NoReturn:
        if value is None and name.split(".")[0] not in self._columns:
            columns = format_keys(self._columns, _MAX_NAMES)
            self.refuse(f"the column `{name}` is missing; the columns are {columns}")
        self.refuse(f"{prefix}the column `{name}` is {describe_value(value)}; it must be {allowed}")


def describe_value(value: object) -> str:
    """Describe a value for a message."""
    if isinstance(value, str | bool | int | float):
        return quote(value)
    return describe_type(value)
