"""Infer, row by row, the Arrow type that holds every value of a JSON column.

Whole numbers and decimals become decimals, and structs get the keys of all rows. Any other
difference between rows has no type in a table; the error names the column and what was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serve.errors import JobOutputError

_MAX_KEYS = 2000  # per object: more keys are ids, which should not become columns of a table
_INT64, _UINT64 = range(-(1 << 63), 1 << 63), range(1 << 64)
_EXACT_IN_FLOAT64 = range(-(1 << 53), (1 << 53) + 1)
_SCALARS = {str: "text", bool: "true/false", int: "whole numbers", float: "decimals"}


class TypeInference:
    """Types seen at one path of the records; memory grows only with the number of paths."""

    __slots__ = ("fields", "item", "largest", "scalars", "smallest")

    def __init__(self) -> None:
        self.scalars: set[type] = set()
        self.fields: dict[str, TypeInference] | None = None
        self.item: TypeInference | None = None
        self.smallest = self.largest = 0

    def add(self, value: Any) -> None:
        """Add one JSON value."""
        if value is None:
            return
        kind = type(value)
        if kind is dict:
            if self.fields is None:
                self.fields = {}
            fields = self.fields
            for key, item in value.items():
                if key not in fields:
                    fields[key] = TypeInference()
                fields[key].add(item)
        elif kind is list:
            if self.item is None:
                self.item = TypeInference()
            for item in value:
                self.item.add(item)
        else:
            self.scalars.add(kind)
            if kind is int:
                self.smallest = min(self.smallest, value)
                self.largest = max(self.largest, value)

    def infer_type(self, path: str) -> pa.DataType:
        """Return the type that holds all values of the column at `path`.

        Raises:
            JobOutputError: no type holds all values.
        """
        found = [_SCALARS[kind] for kind in _SCALARS if kind in self.scalars]
        found += ["objects"] * (self.fields is not None) + ["lists"] * (self.item is not None)
        if found == ["whole numbers", "decimals"] and self._is_within(_EXACT_IN_FLOAT64):
            return pa.float64()
        if len(found) > 1:
            raise _no_type_error(path, f"both {' and '.join(found)}")
        if self.fields is not None:
            return pa.struct(infer_fields(self.fields, path))
        if self.item is not None:
            return pa.list_(self.item.infer_type(f"{path}[]"))
        return self._infer_scalar_type(path)

    def _infer_scalar_type(self, path: str) -> pa.DataType:
        if int in self.scalars:
            if self._is_within(_INT64):
                return pa.int64()
            if self._is_within(_UINT64):
                return pa.uint64()
            raise _no_type_error(path, "whole numbers of more than 64 bits")
        types = {str: pa.string(), bool: pa.bool_(), float: pa.float64()}
        return next((types[kind] for kind in self.scalars), pa.null())

    def _is_within(self, numbers: range) -> bool:
        return self.smallest in numbers and self.largest in numbers


def infer_fields(columns: Mapping[str, TypeInference], path: str = "") -> list[pa.Field]:
    """Return fields in the order in which they were first seen.

    Args:
        columns: types by the names of the fields.
        path: path of the struct with these fields; empty for columns.
    """
    if len(columns) > _MAX_KEYS:
        raise _no_type_error(path or "the records", f"{len(columns)} different keys")
    if not columns and path:
        return [pa.field("_empty", pa.null())]  # Parquet does not have structs without fields
    start = f"{path}." if path else ""
    return [
        pa.field(name, inference.infer_type(start + name)) for name, inference in columns.items()
    ]


def require_parquet_types(schema: pa.Schema) -> None:
    """Raise a `JobOutputError` that names a column whose type only Arrow has."""
    for field in schema:
        try:
            pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])).close()
        except pa.ArrowNotImplementedError:
            raise _no_type_error(field.name, f"values of type {field.type}") from None


def _no_type_error(path: str, found: str) -> JobOutputError:
    return JobOutputError(
        f"`{path}` has {found}, which no column of a Parquet file can hold; write JSON lines "
        "instead: name an OUTPUT that ends in .jsonl"
    )
