"""Arrow types: which of them `datasets` can store, and which hold lists or dictionaries."""

from __future__ import annotations

import pyarrow as pa
from pyarrow import types

from datadreamer_like.errors import StepOutputTypeError


def has_keys(kind: pa.DataType) -> bool:
    """Returns whether a column's values are dictionaries, or lists of dictionaries."""
    return types.is_struct(kind) or (is_list(kind) and has_keys(kind.value_type))


def holds_empty_objects(kind: pa.DataType) -> bool:
    """Returns whether a type has dictionaries without any key, which Parquet cannot store."""
    if types.is_struct(kind):
        return not kind.num_fields or any(holds_empty_objects(field.type) for field in kind)
    return is_list(kind) and holds_empty_objects(kind.value_type)


def is_list(kind: pa.DataType) -> bool:
    """Returns whether a column's values are lists."""
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def stored_as(array: pa.Array, name: str, what: str) -> pa.Array:
    """Returns an array in a type that `datasets` has a name for: without dictionary, views and run-end encoding.

    A map becomes a list of dictionaries of `key` and `value`.
    """
    kind = _storable(array.type)
    if kind is None:
        raise StepOutputTypeError(
            f'{what}: column "{name}" has the Arrow type {array.type}, which datasets cannot store. Leave the column '
            "out, or convert it where it is made, such as to texts."
        )
    if isinstance(array, pa.ExtensionArray) and kind != array.type:
        if str(array.type) == "extension<arrow.uuid>":
            return pa.array([None if v is None else str(v) for v in array.to_pylist()], pa.string())
        array = array.storage
    return array if kind == array.type else array.cast(kind)


def _storable(kind: pa.DataType) -> pa.DataType | None:
    """Returns the type in which values of an Arrow type are stored; None where there is none."""
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _storable(kind.value_type)
    if types.is_struct(kind):
        fields = [(field.name, _storable(field.type)) for field in kind]
        return None if any(inner is None for _, inner in fields) else pa.struct(fields)
    if types.is_map(kind):
        entry = _storable(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))
        return None if entry is None else pa.list_(entry)
    if is_list(kind) or types.is_list_view(kind) or types.is_large_list_view(kind):
        inner = _storable(kind.value_type)
        if inner == kind.value_type and is_list(kind):
            return kind
        return None if inner is None else pa.list_(inner)
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return pa.large_string() if types.is_string_view(kind) else pa.large_binary()
    if isinstance(kind, pa.ExtensionType):
        if str(kind) == "extension<arrow.uuid>":
            return pa.string()
        return kind if kind.extension_name.startswith("datasets.") else _storable(kind.storage_type)
    if types.is_decimal32(kind) or types.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    is_named = types.is_primitive(kind) or types.is_decimal(kind) or types.is_fixed_size_binary(kind)
    is_named = is_named or types.is_null(kind) or types.is_boolean(kind) or _is_text(kind)
    return kind if is_named and not types.is_interval(kind) else None


def _is_text(kind: pa.DataType) -> bool:
    return any(fits(kind) for fits in (
        types.is_string, types.is_large_string, types.is_binary, types.is_large_binary,
    ))  # fmt: skip
