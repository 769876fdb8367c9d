"""Where the parts of a record are, if the caller says so; paths with dots reach into structs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from rm_core import ChatFormatName, InvalidConversationError
from serve.errors import JobInputError

TranscriptMode: TypeAlias = Literal["auto", "read", "keep"]
"""Whether text that holds several turns is read as turns; see `serve.jobs.transcripts`."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns by name; with none named, they are recognized.

    `a.b` is the column of that name if there is one, else `b` within the struct `a`; in a list of
    structs, `b` of each; `a.0` is the first of the list `a`.

    Attributes:
        messages: whole conversations.
        prompt: text or messages.
        response: one answer.
        responses: answers of a group; several columns are put together in this order.
        chosen: the better answer or conversation.
        rejected: the worse one.
        system: text of a system message that goes before the others.
        history: earlier turns, which go before the prompt.
        tools: functions that the template writes.
        ignored: columns that are carried through and never read. An empty name for `prompt`,
            `system`, `history` or `tools` ignores all columns that could be meant.
        transcripts: whether text that holds several turns is read as turns.
        policy_template: family of the chat template that rendered prompts and answers; None where
            they are plain text.

    Raises:
        JobInputError: columns of more than one shape.
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
                f"{' and '.join(named)} name columns of different shapes; a job whose columns are "
                "named has one: give those of one shape"
            )
        if self.messages and self.prompt:
            raise JobInputError(
                "--messages-column names whole conversations, which have no --prompt-column; "
                "leave one out"
            )

    def as_options(self) -> dict[str, Any]:
        """The options that a person gives for these columns, as JSON data."""
        plain = asdict(self)
        others = {name: plain.pop(name) for name in ("transcripts", "policy_template")}
        named = {"ignore_column": list(plain.pop("ignored"))}
        named |= {
            f"{name}_column": list(value) if isinstance(value, tuple) else value
            for name, value in plain.items()
        }
        return {**named, **others}


DEFAULT_COLUMNS = Columns()


def get_path(record: Mapping[str, Any], path: str) -> Any:
    """The value at a path; see `Columns`.

    Raises:
        InvalidConversationError: there is none, or it is null.
    """
    try:
        value = _walk_path(record, path)
    except (LookupError, TypeError):
        value = None
    if value is None:
        raise InvalidConversationError(
            f"the record has nothing at `{path}`, which an option names; it has {format_names(record)}"
        )
    return value


def get_optional_path(record: Mapping[str, Any], path: str) -> Any:
    """The value at a path, None where it is null.

    Raises:
        InvalidConversationError: there is no such column.
    """
    try:
        return _walk_path(record, path)
    except (LookupError, TypeError):
        return get_path(record, path)


def format_names(names: Iterable[str]) -> str:
    """The first of a caller's own names, which may be many and of any length."""
    every = [f"`{str(name)[:40]}`" for name in names]
    more = f" and {len(every) - 8} more" if len(every) > 8 else ""
    return (", ".join(every[:8]) or "no columns") + more


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
