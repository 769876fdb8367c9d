"""The shapes of a job's records: what is to be scored in one.

ChatJson, pair and group are the service's own; the formats of other tools are made into them.
Which columns count is the rule of `serve.jobs.column_rules`, how they are read is in
`serve.jobs.record_reader`. What a record gets for its rewards is in `serve.jobs.row_results`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rm_core import InputError, InvalidConversationError, ScoreError
from rm_core.inputs.conversations import ChatJson
from serve.jobs.column_rules import (
    CHOSEN,
    CONVERSATIONS,
    GENERATION,
    REJECTED,
    RESPONSES,
    explain_unknown_kind,
    find_pair_columns,
    is_prompt,
)
from serve.jobs.columns import DEFAULT_COLUMNS, Columns
from serve.jobs.record_reader import RecordReader
from serve.jobs.sharegpt import load_messages

RecordKind = Literal["conversation", "pair", "group"]


@dataclass(frozen=True, slots=True)
class ParsedRecord:
    """What one record asks for.

    Attributes:
        shape: decides which columns the answer gets; None if the record has none.
        conversations: in order; an error in the place of a response that has no valid shape.
        error: why nothing of it can be scored; there are no conversations then.
        warnings: what the caller should know of how the record was read.
    """

    kind: RecordKind | None
    conversations: tuple[ChatJson | ScoreError, ...] = ()
    error: ScoreError | None = None
    warnings: tuple[str, ...] = ()


def try_parse_record(record: object, columns: Columns = DEFAULT_COLUMNS) -> ParsedRecord:
    """What a record asks for; what is wrong with it becomes the error of the `BatchCall`.

    Args:
        record: as a reader gives it, also a `ScoreError` for what could not be read.
        columns: where the caller said its parts are.
    """
    if isinstance(record, ScoreError):
        return ParsedRecord(None, error=record)
    try:
        return parse_record(record, columns)
    except InputError as error:
        shapes = infer_record_kinds(record, columns) if isinstance(record, Mapping) else []
        return ParsedRecord(shapes[0] if shapes else None, error=ScoreError.from_exception(error))


def parse_record(record: object, columns: Columns = DEFAULT_COLUMNS) -> ParsedRecord:
    """The conversations of a record.

    Args:
        record: of any known shape.
        columns: where the caller said its parts are.

    Raises:
        InvalidConversationError: no known shape, or a conversation that cannot be scored.
    """
    if not isinstance(record, Mapping):
        raise InvalidConversationError(
            f"a record must be a JSON object, got {type(record).__name__}"
        )
    shapes = infer_record_kinds(record, columns)
    if not shapes:
        raise InvalidConversationError(explain_unknown_kind(record))
    if len(shapes) > 1:
        raise InvalidConversationError(
            f"the record is a {' and a '.join(shapes)} at once; name the columns of the one to "
            "score, with --messages-column, --chosen-column and --rejected-column, or "
            "--responses-column"
        )
    reader = RecordReader(record, columns)
    read: Mapping[RecordKind, Callable[[], list[Any]]] = {
        "conversation": reader.read_conversation,
        "pair": reader.read_pair,
        "group": reader.read_group,
    }
    conversations = reader.complete(read[shapes[0]]())
    return ParsedRecord(shapes[0], tuple(conversations), warnings=reader.warnings)


def infer_kinds_from_columns(
    has_column: Callable[[str], bool], columns: Columns = DEFAULT_COLUMNS
) -> list[RecordKind]:
    """Which shapes there are where certain columns are; more than one is for the caller to solve.

    Args:
        has: whether there is a column of that name.
        columns: where the caller said a record's parts are.
    """
    if columns.chosen or columns.rejected:
        return ["pair"]
    if columns.responses:
        return ["group"]
    if columns.messages or columns.response:
        return ["conversation"]
    pair = find_pair_columns(has_column)
    shapes: list[RecordKind] = []
    if has_column("messages") and (pair is None or pair[0] != "messages"):
        shapes.append("conversation")
    if pair:
        shapes.append("pair")
    if has_column("responses"):
        shapes.append("group")
    if not shapes and has_column("generations"):
        shapes.append("group")
    if not shapes and any(has_column(name) for name in (*CONVERSATIONS, *RESPONSES, GENERATION)):
        shapes.append("conversation")
    if not shapes and any(has_column(name) for name in (*CHOSEN, *REJECTED)):
        shapes.append("pair")  # half of one: the other half is reported as missing
    return shapes


def infer_record_kinds(record: Mapping[str, Any], columns: Columns) -> list[RecordKind]:
    """Which shapes a record has by its columns, null ones left aside.

    Where `infer_kinds_from_columns` finds a conversation by its name, the values decide: `messages` that end
    before an answer are the prompt of a pair, a group or an answer that is there too, and
    `messages` that are equal to `chosen` add nothing to a pair.
    """
    there = {
        name for name, value in record.items() if value is not None and name not in columns.ignored
    }
    shapes = infer_kinds_from_columns(there.__contains__, columns)
    if "messages" not in there or "conversation" not in shapes:
        return shapes
    messages = load_messages(record["messages"])
    if is_prompt(messages):
        return infer_kinds_from_columns((there - {"messages"}).__contains__, columns) or shapes
    if shapes == ["conversation", "pair"] and messages == load_messages(record.get("chosen")):
        return ["pair"]
    return shapes
