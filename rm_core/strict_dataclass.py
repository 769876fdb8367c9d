"""Read frozen dataclasses from JSON strictly, so that a typo in a data file is an error.

The annotations of the dataclass are the schema. Lists become tuples, and an integer is accepted
for a float. Every other value must have exactly the annotated type.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_SCALARS = (str, int, float, bool)


def read_dataclass(kind: Any, raw: Any, where: str) -> Any:
    """Convert `raw`, a value as `json` returns it, to the annotation `kind`.

    Args:
        kind: a dataclass (also a generic one with its argument, as in `Fact[int]`), a scalar, a
            `Literal`, `tuple[X, ...]`, `Mapping[str, X]`, or any of these or None.
        raw: the JSON value.
        where: origin of the value for error messages, for instance a file.

    Raises:
        ValueError: a key is unknown or missing, or a value has the wrong type.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in args if arg is not types.NoneType)
        return None if raw is None else read_dataclass(inner, raw, where)
    if origin is Literal:
        _require(raw in args, where, raw, "one of " + ", ".join(map(repr, args)))
        return raw
    if origin is tuple:
        _require(isinstance(raw, list), where, raw, "a list")
        return tuple(read_dataclass(args[0], item, f"{where}[{i}]") for i, item in enumerate(raw))
    if origin is Mapping:
        _require(isinstance(raw, dict), where, raw, "an object")
        return {key: read_dataclass(args[1], item, f"{where}.{key}") for key, item in raw.items()}
    if kind in _SCALARS:
        return _read_scalar(kind, raw, where)
    return _read_fields(origin or kind, args, raw, where)


def read_with_sources(kind: type[T], raw: Any, sources: Collection[str], where: str) -> T:
    """Like `read_dataclass`, but also check that the value of every key `source` is in `sources`.

    Raises:
        ValueError: as in `read_dataclass`, or a source is not in `sources`.
    """
    instance: T = read_dataclass(kind, raw, where)
    for source in _iter_values(raw, "source"):
        if source not in sources:
            raise ValueError(f"{where}: source {source!r} is not in the list of sources")
    return instance


def _iter_values(raw: Any, key: str) -> Iterator[Any]:
    if isinstance(raw, dict):
        if key in raw:
            yield raw[key]
        raw = list(raw.values())
    if isinstance(raw, list):
        for item in raw:
            yield from _iter_values(item, key)


def _read_fields(cls: Any, args: tuple[Any, ...], raw: Any, where: str) -> Any:
    _require(isinstance(raw, dict), where, raw, "an object")
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cls)
    if unknown := raw.keys() - {field.name for field in fields}:
        raise ValueError(f"{where}: unknown key {sorted(unknown)[0]!r} for {cls.__name__}")
    values = {}
    for field in fields:
        if field.name in raw:
            kind = _bind(hints[field.name], args)
            values[field.name] = read_dataclass(kind, raw[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"{where}: key {field.name!r} of {cls.__name__} is missing")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _bind(hint: Any, args: tuple[Any, ...]) -> Any:
    """Replace the type variable of a hint by the argument of its generic class."""
    if args and any(isinstance(arg, TypeVar) for arg in (hint, *get_args(hint))):
        return args[0] if isinstance(hint, TypeVar) else hint[args[0]]
    return hint


def _read_scalar(kind: type, raw: Any, where: str) -> Any:
    if kind is float and type(raw) is int:
        return float(raw)
    _require(type(raw) is kind, where, raw, f"a value of type {kind.__name__}")
    return raw


def _require(condition: bool, where: str, raw: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{where}: got {str(raw)[:80]!r}, expected {allowed}")
