"""The one Arrow type that holds every value of a column of JSON, found row by row.

Whole numbers and decimals become decimals, structs get the keys of all rows; anything else that
differs between rows has no type in a table, and the error says which column and what was seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serve.errors import JobOutputError

_MAX_KEYS = 2000  # of one object: more are ids used as keys, which no table should have as columns
_INT64, _UINT64 = range(-(1 << 63), 1 << 63), range(1 << 64)
_EXACT_IN_FLOAT64 = range(-(1 << 53), (1 << 53) + 1)
_SCALARS = {str: "text", bool: "true/false", int: "whole numbers", float: "decimals"}


class TypeInference:
    """What was seen at one place of the records; grows with the number of places alone."""

    __slots__ = ("fields", "item", "largest", "scalars", "smallest")

    def __init__(self) -> None:
        self.scalars: set[type] = set()
        self.fields: dict[str, TypeInference] | None = None
        self.item: TypeInference | None = None
        self.smallest = self.largest = 0

    def add(self, value: Any) -> None:
        """Look at one value, of JSON."""
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
        """The type of all that was seen.

        Raises:
            JobOutputError: there is none; `place` tells the column.
        """
        seen = [_SCALARS[kind] for kind in _SCALARS if kind in self.scalars]
        seen += ["objects"] * (self.fields is not None) + ["lists"] * (self.item is not None)
        if seen == ["whole numbers", "decimals"] and self._is_within(_EXACT_IN_FLOAT64):
            return pa.float64()
        if len(seen) > 1:
            raise _no_type_error(path, f"both {' and '.join(seen)}")
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
    """Fields in the order in which they were first seen.

    Raises:
        JobOutputError: one has no type, or there are too many.
    """
    if len(columns) > _MAX_KEYS:
        raise _no_type_error(path or "the records", f"{len(columns)} different keys")
    if not columns and path:
        return [pa.field("_empty", pa.null())]  # Parquet has no struct without fields
    start = f"{path}." if path else ""
    return [pa.field(name, seen.infer_type(start + name)) for name, seen in columns.items()]


def require_parquet_types(schema: pa.Schema) -> None:
    """Return if a Parquet file can hold all columns of a table.

    Raises:
        JobOutputError: names a column of a type that only Arrow has.
    """
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
