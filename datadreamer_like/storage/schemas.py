"""The schema of a step's rows: one for all batches, widened when a batch needs a wider type."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from typing import TypeVar

import pyarrow as pa
from pyarrow import types

from datadreamer_like.errors import StepOutputTypeError

from .arrow_types import has_keys, is_list
from .uniform import Uniform
from .values import FEATURE, NONE_KEYS, PICKLED, labels_in

_ArrowRows = TypeVar("_ArrowRows", pa.Table, pa.RecordBatch)


def widened(old: pa.Schema, new: pa.Schema, what: str) -> pa.Schema:
    """Returns the common schema of two schemas.

    Columns keep their order; new columns are added at the end and are None in other rows. Incompatible types or class
    names of a column are refused.
    """
    if old.equals(new, check_metadata=True):
        return old
    fields = [_widened_field(field, new.field(field.name), what) if field.name in new.names else field for field in old]
    return pa.schema(fields + [field for field in new if field.name not in old.names])


def cast(batch: pa.RecordBatch, schema: pa.Schema, what: str = "table") -> pa.RecordBatch:
    """Returns a batch with the columns and types of a wider schema; values that would change are refused."""
    arrays = []
    for field in schema:
        if field.name not in batch.schema.names:
            arrays.append(pa.nulls(batch.num_rows, field.type))
            continue
        column = batch.column(field.name)
        try:
            arrays.append(column if column.type == field.type else column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            # Some Arrow versions cannot add fields to structs by casting.
            try:
                arrays.append(pa.array(column.to_pylist(), field.type))
            except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
                raise StepOutputTypeError(
                    f'{what}: column "{field.name}" holds {column.type} and {field.type}, and some values do not fit '
                    f"{field.type} ({error}). Convert them to one type first, or to texts."
                ) from error
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def with_schema(rows: _ArrowRows, schema: pa.Schema) -> _ArrowRows:
    """Returns a table or batch under a schema of the same columns, which may differ in metadata."""
    # Arrow's cast damages lists of nulls, even those whose type stays the same (pyarrow 26).
    if rows.num_columns and rows.schema.equals(schema):
        return type(rows).from_arrays(rows.columns, schema=schema)
    return rows.cast(schema)


def _widened_field(a: pa.Field, b: pa.Field, what: str) -> pa.Field:
    if a.equals(b, check_metadata=True):
        return a
    kind = _widened_type(a.type, b.type)
    if kind is None:
        raise Uniform(a.name, what).mixed([str(a.type), str(b.type)])
    return pa.field(a.name, kind, metadata=_metadata(a, b, what) or None)


def _metadata(a: pa.Field, b: pa.Field, what: str) -> dict[bytes, bytes]:
    ours, theirs = a.metadata or {}, b.metadata or {}
    if types.is_null(a.type) or types.is_null(b.type):
        return dict(theirs if types.is_null(a.type) else ours)
    metadata = {}
    if ours.get(FEATURE) != theirs.get(FEATURE):
        if labels_in(a) != labels_in(b):
            raise StepOutputTypeError(
                f'{what}: column "{a.name}" holds numbers of {_classes(a)} and of {_classes(b)}. Give both the same '
                f'class names: dataset.cast_column("{a.name}", ClassLabel(names=[...])), or turn the numbers into '
                "names with step.map."
            )
    elif FEATURE in ours:
        metadata[FEATURE] = ours[FEATURE]
    if (PICKLED in ours) != (PICKLED in theirs):
        raise Uniform(a.name, what).mixed(["pickled objects", "bytes"])
    if PICKLED in ours:
        metadata[PICKLED] = b"1"
    known = [own[NONE_KEYS] for own in (ours, theirs) if NONE_KEYS in own]
    if known and all(NONE_KEYS in (field.metadata or {}) or not has_keys(field.type) for field in (a, b)):
        keys = {tuple(path) for data in known for path in json.loads(data)}
        metadata[NONE_KEYS] = json.dumps(sorted(keys)).encode()
    return metadata


def _classes(field: pa.Field) -> str:
    names = list(chain(*labels_in(field).values()))
    return f"the classes {', '.join(names)}" if names else "no named classes"


def _widened_type(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if a == b or types.is_null(b):
        return a
    if types.is_null(a):
        return b
    return next((wider(a, b) for fits, wider in _WIDER if fits(a) and fits(b)), None)


def _decimals(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    scale = max(a.scale, b.scale)
    digits = max(a.precision - a.scale, b.precision - b.scale) + scale
    return pa.decimal128(digits, scale) if digits <= 38 else pa.decimal256(digits, scale)


def _timestamps(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if (a.tz is None) != (b.tz is None):
        return None
    return pa.timestamp(_finer(a, b), a.tz if a.tz == b.tz else "UTC")


def _finer(a: pa.DataType, b: pa.DataType) -> str:
    return str(max(a.unit, b.unit, key=("s", "ms", "us", "ns").index))


def _lists(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    inner = _widened_type(a.value_type, b.value_type)
    return None if inner is None else pa.list_(inner)


def _structs(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    fields = {field.name: field.type for field in a}
    for field in b:
        wide = _widened_type(fields.get(field.name, pa.null()), field.type)
        if wide is None:
            return None
        fields[field.name] = wide
    return pa.struct(list(fields.items()))


_WIDER: tuple[
    tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType, pa.DataType], pa.DataType | None]], ...
] = (
    (types.is_unsigned_integer, lambda a, b: pa.uint64()),
    (types.is_integer, lambda a, b: pa.int64()),
    (lambda kind: types.is_integer(kind) or types.is_floating(kind), lambda a, b: pa.float64()),
    (lambda kind: types.is_string(kind) or types.is_large_string(kind), lambda a, b: pa.large_string()),
    (
        lambda kind: types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind),
        lambda a, b: pa.large_binary(),
    ),
    (types.is_decimal, _decimals),
    (types.is_timestamp, _timestamps),
    (types.is_duration, lambda a, b: pa.duration(_finer(a, b))),
    (types.is_time, lambda a, b: pa.time64("ns" if "ns" in (a.unit, b.unit) else "us")),
    (is_list, _lists),
    (types.is_struct, _structs),
)  # fmt: skip
