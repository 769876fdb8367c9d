"""What would be scored of each record of JSON lines: text and token ids, no rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any

from rm_core import Encoded, ModelConfig, ScoreError, Truncation, load_encoder, to_render_json
from serve.escaping import dump_json
from serve.jobs.columns import DEFAULT_COLUMNS, Columns
from serve.jobs.inputs.jsonl import parse_rows
from serve.jobs.record_schema import try_parse_record


def render_lines(
    lines: IO[bytes],
    config: ModelConfig,
    truncation: Truncation,
    write: Callable[[str], None],
    columns: Columns = DEFAULT_COLUMNS,
) -> int:
    """Write what would be scored of each record's conversations; returns the number of errors.

    Args:
        lines: JSONL of the same shapes as a job's.
        config: the checkpoint whose tokenizer and template to use.
        truncation: what to do with what is too long.
        write: told one JSON line a conversation.
        columns: where the parts of a record are.
    """
    encoder = load_encoder(config)
    failed = 0
    for row in parse_rows(lines):
        work = try_parse_record(row.record, columns)
        for conversation in [work.error] if work.error else work.conversations:
            encoded: Encoded | ScoreError
            if isinstance(conversation, ScoreError):
                encoded = conversation
            else:
                (encoded,) = encoder.encode_all([conversation], truncation)
            record: dict[str, Any] = {"line": row.number}
            if isinstance(encoded, Encoded):
                record |= to_render_json(encoded)
                if warnings := [*work.warnings, *encoded.warnings]:
                    record["warnings"] = warnings
            else:
                failed += 1
                record["error"] = {"code": encoded.code, "message": encoded.message}
            write(dump_json(record))
    return failed
