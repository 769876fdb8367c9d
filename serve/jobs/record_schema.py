"""Kinds of records: conversation, pair and group; formats of other tools are converted to these.

`serve.jobs.columns` defines which columns count, `serve.jobs.record_reader` reads them, and
`serve.jobs.row_results` defines the result columns of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rm_core import InputError, InvalidConversationError, ScoreError
from rm_core.inputs.conversations import ChatJson
from serve.jobs.columns import (
    CHOSEN,
    CONVERSATIONS,
    DEFAULT_COLUMNS,
    GENERATION,
    REJECTED,
    RESPONSES,
    Columns,
    explain_unknown_kind,
    find_pair_columns,
    is_prompt,
)
from serve.jobs.record_reader import RecordReader
from serve.jobs.turns import load_messages

RecordKind = Literal["conversation", "pair", "group"]


@dataclass(frozen=True, slots=True)
class ParsedRecord:
    """The conversations of one record.

    Attributes:
        kind: kind of the record, which decides its result columns; None if unknown.
        conversations: conversations in order; an error in place of an invalid response.
        error: why the record cannot be scored; it then has no conversations.
        warnings: warnings about how the record was read.
    """

    kind: RecordKind | None
    conversations: tuple[ChatJson | ScoreError, ...] = ()
    error: ScoreError | None = None
    warnings: tuple[str, ...] = ()


def try_parse_record(record: object, columns: Columns = DEFAULT_COLUMNS) -> ParsedRecord:
    """Parse a record; an invalid record gives a `ParsedRecord` with an error.

    `record` is what a reader gives: a `ScoreError` if the row could not be read.
    """
    if isinstance(record, ScoreError):
        return ParsedRecord(None, error=record)
    try:
        return parse_record(record, columns)
    except InputError as error:
        kinds = infer_record_kinds(record, columns) if isinstance(record, Mapping) else []
        return ParsedRecord(kinds[0] if kinds else None, error=ScoreError.from_exception(error))


def parse_record(record: object, columns: Columns = DEFAULT_COLUMNS) -> ParsedRecord:
    """Parse a record of any known shape.

    Raises:
        InvalidConversationError: the record has no known shape, or a conversation is invalid.
    """
    if not isinstance(record, Mapping):
        raise InvalidConversationError(
            f"a record must be a JSON object, got {type(record).__name__}"
        )
    kinds = infer_record_kinds(record, columns)
    if not kinds:
        raise InvalidConversationError(explain_unknown_kind(record))
    if len(kinds) > 1:
        raise InvalidConversationError(
            f"the record is a {' and a '.join(kinds)} at once; name the columns to score by "
            "--messages-column, by --chosen-column and --rejected-column, or by --responses-column"
        )
    reader = RecordReader(record, columns)
    readers: Mapping[RecordKind, Callable[[], list[Any]]] = {
        "conversation": reader.read_conversation,
        "pair": reader.read_pair,
        "group": reader.read_group,
    }
    conversations = reader.complete(readers[kinds[0]]())
    return ParsedRecord(kinds[0], tuple(conversations), warnings=reader.warnings)


def infer_kinds_from_columns(
    has_column: Callable[[str], bool], columns: Columns = DEFAULT_COLUMNS
) -> list[RecordKind]:
    """Return the possible kinds of a record with certain columns; the caller resolves several."""
    if columns.chosen or columns.rejected:
        return ["pair"]
    if columns.responses:
        return ["group"]
    if columns.messages or columns.response:
        return ["conversation"]
    pair = find_pair_columns(has_column)
    kinds: list[RecordKind] = []
    if has_column("messages") and (pair is None or pair[0] != "messages"):
        kinds.append("conversation")
    if pair:
        kinds.append("pair")
    if has_column("responses"):
        kinds.append("group")
    if not kinds and has_column("generations"):
        kinds.append("group")
    if not kinds and any(has_column(name) for name in (*CONVERSATIONS, *RESPONSES, GENERATION)):
        kinds.append("conversation")
    if not kinds and any(has_column(name) for name in (*CHOSEN, *REJECTED)):
        kinds.append("pair")  # one side only: the other side is reported as missing
    return kinds


def infer_record_kinds(record: Mapping[str, Any], columns: Columns) -> list[RecordKind]:
    """Return the possible kinds of a record, from its columns that are not null.

    Where `infer_kinds_from_columns` finds a conversation by its name, the values decide: `messages`
    that end before an answer are the prompt of a pair, a group or an answer in the same record, and
    `messages` that are equal to `chosen` add nothing to a pair.
    """
    names = {
        name for name, value in record.items() if value is not None and name not in columns.ignored
    }
    kinds = infer_kinds_from_columns(names.__contains__, columns)
    if "messages" not in names or "conversation" not in kinds:
        return kinds
    messages = load_messages(record["messages"])
    if is_prompt(messages):
        return infer_kinds_from_columns((names - {"messages"}).__contains__, columns) or kinds
    if kinds == ["conversation", "pair"] and messages == load_messages(record.get("chosen")):
        return ["pair"]
    return kinds
