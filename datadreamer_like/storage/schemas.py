"""The schema of a step's rows: one for all batches, widened when a batch needs a wider type."""

from __future__ import annotations

import json
from collections.abc import Callable

import pyarrow as pa

from datadreamer_like.errors import StepOutputTypeError

from .values import FEATURE, NONE_KEYS, PICKLED, class_names, has_keys, is_list, mixed

_WIDEST_DECIMAL = 38


def widened(old: pa.Schema, new: pa.Schema, what: str) -> pa.Schema:
    """Returns the common schema of two schemas.

    Columns keep their order; new columns are added at the end and are None in other rows.

    Raises:
        StepOutputTypeError: A column's types or class names are incompatible.
    """
    fields = []
    for field in old:
        fields.append(_widened_field(field, new.field(field.name), what) if field.name in new.names else field)
    fields += [field for field in new if field.name not in old.names]
    return pa.schema(fields)


def cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Returns a batch with the columns and types of a wider schema."""
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
            arrays.append(pa.array(column.to_pylist(), field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _widened_field(a: pa.Field, b: pa.Field, what: str) -> pa.Field:
    if a.equals(b, check_metadata=True):
        return a
    kind = _widened_type(a.type, b.type)
    if kind is None:
        raise mixed(a.name, what, [str(a.type), str(b.type)])
    return pa.field(a.name, kind, metadata=_metadata(a, b, what) or None)


def _metadata(a: pa.Field, b: pa.Field, what: str) -> dict[bytes, bytes]:
    if pa.types.is_null(a.type) or pa.types.is_null(b.type):
        return dict((b if pa.types.is_null(a.type) else a).metadata or {})
    ours, theirs = a.metadata or {}, b.metadata or {}
    metadata = {}
    if ours.get(FEATURE) != theirs.get(FEATURE):
        if class_names(a) is not None or class_names(b) is not None:
            raise StepOutputTypeError(
                f'{what}: column "{a.name}" holds numbers of {_classes(a)} and of {_classes(b)}. Give both the same '
                f'class names: dataset.cast_column("{a.name}", ClassLabel(names=[...])), or turn the numbers into '
                "names with step.map."
            )
    elif FEATURE in ours:
        metadata[FEATURE] = ours[FEATURE]
    if PICKLED in ours or PICKLED in theirs:
        metadata[PICKLED] = b"1"
    known = [field.metadata[NONE_KEYS] for field in (a, b) if field.metadata and NONE_KEYS in field.metadata]
    if known and all(NONE_KEYS in (field.metadata or {}) or not has_keys(field.type) for field in (a, b)):
        keys = {tuple(path) for data in known for path in json.loads(data)}
        metadata[NONE_KEYS] = json.dumps(sorted(keys)).encode()
    return metadata


def _classes(field: pa.Field) -> str:
    names = class_names(field)
    return f"the classes {', '.join(names)}" if names is not None else "no named classes"


def _widened_type(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    for fits, wider in _WIDER:
        if fits(a) and fits(b):
            return wider(a, b)
    return None


def _integers(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    return pa.int64()


def _numbers(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    return pa.float64()


def _texts(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    return pa.large_string()


def _binaries(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    return pa.large_binary()


def _decimals(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    scale = max(a.scale, b.scale)
    digits = max(a.precision - a.scale, b.precision - b.scale) + scale
    return pa.decimal128(digits, scale) if digits <= _WIDEST_DECIMAL else pa.decimal256(digits, scale)


def _timestamps(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if (a.tz is None) != (b.tz is None):
        return None
    units = ("s", "ms", "us", "ns")
    return pa.timestamp(max(a.unit, b.unit, key=units.index), a.tz if a.tz == b.tz else "UTC")


def _lists(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    inner = _widened_type(a.value_type, b.value_type)
    return None if inner is None else pa.list_(inner)


def _structs(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    fields = {field.name: field.type for field in a}
    for field in b:
        wide = _widened_type(fields[field.name], field.type) if field.name in fields else field.type
        if wide is None:
            return None
        fields[field.name] = wide
    return pa.struct(list(fields.items()))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


_Wider = Callable[[pa.DataType, pa.DataType], pa.DataType | None]
_WIDER: tuple[tuple[Callable[[pa.DataType], bool], _Wider], ...] = (
    (pa.types.is_integer, _integers),
    (_is_number, _numbers),
    (_is_text, _texts),
    (_is_binary, _binaries),
    (pa.types.is_decimal, _decimals),
    (pa.types.is_timestamp, _timestamps),
    (is_list, _lists),
    (pa.types.is_struct, _structs),
)
