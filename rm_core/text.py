"""Values and names shortened for messages: callers may send many, of any length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_TYPES: Mapping[type, str] = {
    dict: "an object",
    list: "a list",
    tuple: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def shorten(text: str, limit: int = 60) -> str:
    """Return a text; one of more than `limit` characters is cut and ends with three dots."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def quote(value: object, limit: int = 60) -> str:
    """Return a value as Python writes it, shortened to about `limit` characters."""
    if isinstance(value, str):
        return repr(shorten(value, limit))
    try:
        return shorten(repr(value), limit)
    except (RecursionError, ValueError):  # nested too deeply; a number with too many digits
        return describe_type(value)


def describe_type(value: object) -> str:
    """Return the type of a value in the words of JSON, such as "a list"."""
    return _TYPES.get(type(value), f"a {type(value).__name__}")


def format_names(names: Iterable[object], limit: int = 8) -> str:
    """Return names with commas between them, such as `a, b and 3 more`; "nothing" without names."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return (", ".join(texts[:limit]) + more) or "nothing"


def format_keys(keys: Iterable[object], limit: int = 8) -> str:
    """Return keys as `format_names` does, each cut to 40 characters and in backquotes."""
    return format_names((f"`{shorten(str(key), 40)}`" for key in keys), limit)


def is_library_error(error: BaseException) -> bool:
    """Return whether a library raised the error; a panic in Rust derives from BaseException."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def summarize_error(error: BaseException) -> str:
    """Return the class and first line of an error, to quote in a message."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    # Validators name the field in the first line and the problem in the second.
    text = " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else "no reason given"
    return f"{type(error).__name__}: {text}"
