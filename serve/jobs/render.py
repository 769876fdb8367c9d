"""Render the input of the model for records of JSON lines: text and token ids, no rewards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from rm_core import Encoded, ModelConfig, ScoreError, Truncation, load_encoder, to_render_json
from rm_core.inputs.encoder import ChatEncoder
from serve.escaping import dump_json
from serve.jobs.columns import DEFAULT_COLUMNS, Columns
from serve.jobs.inputs.image_files import ImageFiles
from serve.jobs.inputs.json_rows import parse_lines
from serve.jobs.record_reader import try_parse_record


def render_lines(
    lines: IO[bytes],
    config: ModelConfig,
    truncation: Truncation,
    write: Callable[[str], None],
    columns: Columns = DEFAULT_COLUMNS,
    path: Path | None = None,
) -> int:
    """Write the model input of each conversation as a line of JSON; return the number of errors.

    `line` counts the rows from 0.

    Args:
        lines: records of the same shapes as a job's input.
        config: configuration of the model.
        truncation: what to do with conversations that are too long.
        write: writes a line.
        columns: columns that the caller named.
        path: file of the lines, next to which are the images that they name; None for no file.
    """
    encoder = load_encoder(config)
    reads_images = isinstance(encoder, ChatEncoder) and encoder.image_tokens is not None
    images = ImageFiles(path, config.max_image_bytes) if reads_images else None
    num_failed = 0
    for row in parse_lines(lines):
        parsed = try_parse_record(row.record, columns, image_files=images)
        for conversation in [parsed.error] if parsed.error else parsed.conversations:
            encoded: Encoded | ScoreError
            if isinstance(conversation, ScoreError):
                encoded = conversation
            else:
                (encoded,) = encoder.encode_all([conversation], truncation)
            record: dict[str, Any] = {"line": row.number}
            if isinstance(encoded, Encoded):
                record |= to_render_json(encoded)
                if warnings := [*parsed.warnings, *encoded.warnings]:
                    record["warnings"] = warnings
            else:
                num_failed += 1
                record["error"] = {"code": encoded.code, "message": encoded.message}
            write(dump_json(record))
    return num_failed
