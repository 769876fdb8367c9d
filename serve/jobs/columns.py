"""Columns of records that the caller names; dots in a path select fields of structs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from rm_core import ChatFormatName, InvalidConversationError
from serve.errors import JobInputError

TranscriptMode: TypeAlias = Literal["auto", "read", "keep"]
"""How to read text that holds several turns; see `serve.jobs.transcripts`."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns; without names, columns are recognized.

    `a.b` is the column of that name if there is one, else the field `b` of the struct `a`; in a
    list of structs, `b` of each struct; `a.0` is the first item of the list `a`.

    Attributes:
        messages: column with whole conversations.
        prompt: column with the prompt, text or messages.
        response: column with the only answer.
        responses: columns with the answers of a group, combined in this order.
        chosen: column with the better answer or conversation.
        rejected: column with the worse answer or conversation.
        system: column with the text of a system message, inserted before the other messages.
        history: column with earlier turns, inserted before the prompt.
        tools: column with function definitions for the chat template.
        ignored: columns that are copied and never read. An empty name for `prompt`, `system`,
            `history` or `tools` ignores all columns with that meaning.
        transcripts: how to read text that holds several turns.
        policy_template: family of the chat template that rendered prompts and answers; None if
            they are plain text.

    Raises:
        JobInputError: the columns belong to more than one shape.
    """

    messages: str | None = None
    prompt: str | None = None
    response: str | None = None
    responses: tuple[str, ...] = ()
    chosen: str | None = None
    rejected: str | None = None
    system: str | None = None
    history: str | None = None
    tools: str | None = None
    ignored: tuple[str, ...] = ()
    transcripts: TranscriptMode = "auto"
    policy_template: ChatFormatName | None = None

    def __post_init__(self) -> None:
        shapes = {
            "--messages-column": bool(self.messages),
            "--response-column": bool(self.response),
            "--responses-column": bool(self.responses),
            "--chosen-column and --rejected-column": bool(self.chosen or self.rejected),
        }
        named = [options for options, is_named in shapes.items() if is_named]
        if len(named) > 1:
            raise JobInputError(
                f"{' and '.join(named)} name columns of different shapes; a job with named "
                "columns has one shape: give the columns of one shape"
            )
        if self.messages and self.prompt:
            raise JobInputError(
                "--messages-column names whole conversations, which have no --prompt-column; "
                "leave one out"
            )

    def as_options(self) -> dict[str, Any]:
        """Return the command line options for these columns, as JSON data."""
        columns = asdict(self)
        others = {name: columns.pop(name) for name in ("transcripts", "policy_template")}
        named = {"ignore_column": list(columns.pop("ignored"))}
        named |= {
            f"{name}_column": list(value) if isinstance(value, tuple) else value
            for name, value in columns.items()
        }
        return {**named, **others}


DEFAULT_COLUMNS = Columns()


def get_path(record: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path; see `Columns`.

    Raises:
        InvalidConversationError: the record has no value there, or null.
    """
    try:
        value = _walk_path(record, path)
    except (LookupError, TypeError):
        value = None
    if value is None:
        raise InvalidConversationError(
            f"the record has nothing at `{path}`, which an option names; it has "
            f"{format_names(record)}"
        )
    return value


def get_optional_path(record: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path, which may be null (None).

    Raises:
        InvalidConversationError: the record does not have that column.
    """
    try:
        return _walk_path(record, path)
    except (LookupError, TypeError):
        return get_path(record, path)


def format_names(names: Iterable[str]) -> str:
    """Format up to 8 names, each cut to 40 characters: callers may have many long names."""
    quoted = [f"`{str(name)[:40]}`" for name in names]
    more = f" and {len(quoted) - 8} more" if len(quoted) > 8 else ""
    return (", ".join(quoted[:8]) or "no columns") + more


def _walk_path(value: Any, path: str) -> Any:
    head, _, rest = path.partition(".")
    if isinstance(value, Mapping):
        if path in value:
            return value[path]
        return _walk_path(value[head], rest) if rest else value[head]
    if isinstance(value, list):
        if head.isdecimal():
            return _walk_path(value[int(head)], rest) if rest else value[int(head)]
        return [_walk_path(item, path) for item in value]
    raise TypeError(path)
