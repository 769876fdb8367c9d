"""Checks tokenizer.json before the tokenizers library reads it and runs its steps.

A tokenizer may replace each character by a million others, twelve times in a row, and the library
cannot be interrupted meanwhile. This module bounds the number of steps and how much they lengthen
a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rm_core.errors import ModelLoadError
from rm_core.model.checkpoint_files import check_file

MAX_BYTES = 64 << 20
"""Maximum size of tokenizer.json; Gemma's has 34 MB."""
_MAX_ELEMENTS = 3_000_000
"""Number of commas: tokens, merges etc.; 256,000 tokens with 580,000 merges are 1.5 million."""
_MAX_OBJECTS = 100_000
"""Number of opening braces: added tokens, steps, and tokens that contain a brace."""
_MAX_STEPS = 100
_MAX_GROWTH = 16
_MAX_INSERTED = 100
_COMPONENTS = ("normalizer", "pre_tokenizer", "post_processor")


def check_tokenizer(file: Path, num_embeddings: int | None) -> None:
    """Refuse a tokenizer.json that is too large or does not fit the embedding."""
    if not file.exists():
        return
    check_file(file, MAX_BYTES)
    content = file.read_bytes()
    elements, objects = content.count(b","), content.count(b"{")
    if elements > _MAX_ELEMENTS or objects > _MAX_OBJECTS:
        raise ModelLoadError(
            f"{file} has {elements:,} elements and {objects:,} objects, and at most "
            f"{_MAX_ELEMENTS:,} and {_MAX_OBJECTS:,} are allowed; is it the right file? Download "
            "the checkpoint again"
        )
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ModelLoadError(
            f"{file} cannot be read as JSON: {reason}; download it again"
        ) from error
    del content
    if not isinstance(document, dict):
        raise ModelLoadError(f"{file} is not a JSON object; download it again")
    model = document.get("model")
    tokens = model.get("vocab") if isinstance(model, dict) else None
    num_tokens = len(tokens) if isinstance(tokens, dict | list) else 0
    if num_embeddings is not None and num_tokens > num_embeddings:
        raise ModelLoadError(
            f"{file} has {num_tokens:,} tokens, but the embedding has {num_embeddings:,} rows; "
            "does the tokenizer belong to this checkpoint?"
        )
    for component in _COMPONENTS:
        steps = list(_iter_steps(document.get(component)))
        if len(steps) > _MAX_STEPS:
            raise ModelLoadError(
                f"the {component} of {file} has {len(steps):,} steps, and at most {_MAX_STEPS} "
                "are allowed; correct it, or download the checkpoint again"
            )
        _check_growth(file, component, steps)


def _iter_steps(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object within a component: its steps and the elements of their templates."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _iter_steps(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _iter_steps(inner)


def _check_growth(file: Path, component: str, steps: list[Mapping[str, Any]]) -> None:
    growth, inserted = 1.0, 0
    for step in steps:
        if step.get("type") == "Prepend":
            inserted += len(str(step.get("prepend")))
        if step.get("type") == "Replace":
            pattern: Any = step.get("pattern")
            new = len(str(step.get("content")))
            # A regular expression may match a single character, or none.
            is_text = isinstance(pattern, dict) and "String" in pattern
            old = len(str(pattern["String"])) if is_text else 1
            growth *= max(1.0, new / old if old else new + 1)
            if old != 1 or new > 1:
                inserted += new
    if growth > _MAX_GROWTH or inserted > _MAX_INSERTED:
        raise ModelLoadError(
            f"the {component} of {file} may replace one character by {growth:,.0f} characters and "
            f"inserts {inserted:,}; at most {_MAX_GROWTH} and {_MAX_INSERTED} are allowed: correct "
            "it, or download the checkpoint again"
        )
