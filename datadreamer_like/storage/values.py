"""Conversion of Python values to Arrow arrays and back.

The metadata of a column's Arrow field holds what Arrow types cannot express: the `datasets` feature (class names,
images), whether values are pickled Python objects, and which keys of nested rows were given as None. Other keys that
are null in Arrow were missing, so they are left out when values are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datadreamer_like.errors import StepOutputTypeError

if TYPE_CHECKING:
    from datasets import Features

FEATURE = b"datasets feature"
PICKLED = b"pickled"
NONE_KEYS = b"keys given as None"

_PICKLE = b"\x00datadreamer_like pickle 1\x00"

_KeyPath = tuple[str, ...]

_PLAIN = {str, int, float, bool, bytes}


def to_batch(columns: Mapping[str, Any], what: str = "table", like: pa.Schema | None = None) -> pa.RecordBatch:
    """Converts columns of Python values to an Arrow record batch.

    The values of a column are a list or another iterable, or an Arrow array. `what` is the owner of the rows, for error
    messages. Values that fit a column of `like`, the schema that they were read from, keep its class names, images and
    pickles. Values of incompatible types are refused.
    """
    fields, arrays = [], []
    for name, values in columns.items():
        if not isinstance(name, str):
            raise StepOutputTypeError(f"{what}: the column name {name!r} is not a string. Use {str(name)!r}.")
        known = like.field(name) if like is not None and name in like.names else None
        array, metadata = _array(values, name, what, known)
        fields.append(pa.field(name, array.type, metadata=metadata or None))
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def to_columns(batch: pa.RecordBatch | pa.Table) -> dict[str, list[Any]]:
    """Returns the Python values of a batch by column."""
    return {field.name: to_list(batch.column(index), field) for index, field in enumerate(batch.schema)}


def to_list(array: pa.Array | pa.ChunkedArray, field: pa.Field) -> list[Any]:
    """Returns the Python values of one column."""
    values: list[Any] = array.to_pylist()
    metadata = field.metadata
    if not metadata:
        return values
    if metadata.get(PICKLED):
        return [unpickle(value) for value in values]
    if NONE_KEYS in metadata:
        prune = _pruner(field.type, frozenset(map(tuple, json.loads(metadata[NONE_KEYS]))))
        if prune is not None:
            values = [None if value is None else prune(value) for value in values]
    decode = _decoder(metadata[FEATURE]) if FEATURE in metadata else None
    return values if decode is None else [None if value is None else decode(value) for value in values]


# Features of `datasets`


def with_features(schema: pa.Schema, features: Mapping[str, Any]) -> pa.Schema:
    """Returns a schema whose metadata are `datasets` features, where they say more than the Arrow types."""
    from datasets.features.features import Features, generate_from_arrow_type

    fields = []
    for field in schema:
        feature, metadata = features[field.name], None
        if feature != generate_from_arrow_type(field.type):
            metadata = {FEATURE: json.dumps(Features({"": feature}).to_dict()[""], sort_keys=True).encode()}
        fields.append(pa.field(field.name, field.type, metadata=metadata))
    return pa.schema(fields)


def features_of(schema: pa.Schema) -> Features:
    """Returns the `datasets` features of a schema."""
    from datasets.features.features import Features, generate_from_arrow_type

    features = Features()
    for field in schema:
        known = (field.metadata or {}).get(FEATURE)
        features[field.name] = generate_from_arrow_type(field.type) if known is None else _feature(known)
    return features


def class_names(field: pa.Field, in_lists: bool = False) -> list[str] | None:
    """Returns the class names of a column of class labels, or with `in_lists` of lists of them; None for others."""
    feature = json.loads((field.metadata or {}).get(FEATURE, b"{}"))
    if in_lists and isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    return list(feature["names"]) if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None


def holds_pickles(schema: pa.Schema) -> bool:
    """Returns whether a column is known to hold pickled Python objects."""
    return any(PICKLED in (field.metadata or {}) for field in schema)


@lru_cache(maxsize=256)
def _feature(data: bytes) -> Any:
    from datasets.features.features import Features

    return Features.from_dict({"": json.loads(data)})[""]


@lru_cache(maxsize=256)
def _decoder(data: bytes) -> Callable[[Any], Any] | None:
    """Returns the decoder of a feature such as an image or audio; None if values need no decoding."""
    from datasets.features.features import decode_nested_example, require_decoding

    feature = _feature(data)
    return (lambda value: decode_nested_example(feature, value)) if require_decoding(feature) else None


# Python to Arrow


def _array(values: Any, name: str, what: str, known: pa.Field | None) -> tuple[pa.Array, dict[bytes, bytes]]:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return values, {}
    values = values if isinstance(values, list) else list(values)
    kinds = set(map(type, values))
    kinds.discard(type(None))
    if known is not None and PICKLED in (known.metadata or {}) and not kinds <= _PLAIN:
        values = [value if value is None or is_pickled(value) else pickle_value(value) for value in values]
        kinds = {bytes}
    if not kinds <= _PLAIN or len(kinds) > 1:
        values, kinds = _uniform(values, kinds, name, what)
    array, metadata = _kept_feature(values, kinds, known)
    if array is None:
        array = _converted(values, name, what)
    if kinds == {bytes} and any(is_pickled(value) for value in values):
        metadata[PICKLED] = b"1"
    elif FEATURE not in metadata and has_keys(array.type):
        found: set[_KeyPath] = set()
        for value in values:
            _none_keys(value, (), found)
        metadata[NONE_KEYS] = json.dumps(sorted(found)).encode()
    return array, metadata


def _converted(values: list[Any], name: str, what: str) -> pa.Array:
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise StepOutputTypeError(
            f'{what}: column "{name}" holds values that do not fit one type ({error}). Make them of one type, or keep '
            "Python objects with self.pickle(value)."
        ) from error
    except OverflowError as error:
        raise StepOutputTypeError(
            f'{what}: column "{name}" holds an integer beyond 64 bits. Store it as text or as a float.'
        ) from error
    except UnicodeEncodeError as error:
        raise StepOutputTypeError(
            f'{what}: column "{name}" holds a text with half a surrogate pair ({error.object[error.start]!r}), '
            'which is not valid Unicode. Fix it: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").'
        ) from error
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _kept_feature(
    values: list[Any], kinds: set[type], known: pa.Field | None
) -> tuple[pa.Array | None, dict[bytes, bytes]]:
    """Returns the values as a column of the known feature; None if they do not fit it."""
    data = (known.metadata or {}).get(FEATURE) if known is not None else None
    if data is None and any(_room(kind) == "PIL" for kind in kinds):
        data = json.dumps({"_type": "Image"}).encode()
    if data is None:
        return None, {}
    from datasets.features.features import encode_nested_example

    feature = _feature(data)
    if class_label := getattr(feature, "names", None):
        if not all(value is None or (type(value) is int and -1 <= value < len(class_label)) for value in values):
            return None, {}
        return pa.array(values, pa.int64()), {FEATURE: data}
    try:
        encoded = [None if value is None else encode_nested_example(feature, value) for value in values]
        kind = feature() if callable(feature) else pa.array(encoded).type
        storage = kind.storage_type if isinstance(kind, pa.ExtensionType) else kind
        array = pa.array(encoded, storage)
    except (ValueError, TypeError, KeyError, AttributeError, pa.ArrowException):
        return None, {}  # other values than the column had
    return (pa.ExtensionArray.from_storage(kind, array) if kind is not storage else array), {FEATURE: data}


def _uniform(values: list[Any], kinds: set[type], name: str, what: str) -> tuple[list[Any], set[type]]:
    """Returns values of one kind that Arrow accepts, and their types."""
    if any(kind not in _PLAIN and kind.__module__ != "builtins" for kind in kinds):
        values = [_plain(value) for value in values]
        kinds = set(map(type, values)) - {type(None)}
    if kinds == {str, float} and all(value != value for value in values if type(value) is float):
        values = [None if type(value) is float else value for value in values]  # NaN is pandas' missing text
        kinds = {str}
    if len({_family(kind) for kind in kinds}) > 1:
        raise mixed(name, what, sorted(kind.__name__ for kind in kinds))
    if len({value.utcoffset() is None for value in values if hasattr(value, "utcoffset")}) > 1:
        raise mixed(name, what, ["times with a time zone", "times without one"])
    return values, kinds


def _family(kind: type) -> object:
    """Returns the same for types that fit into one column."""
    for bases in ((bool,), (int, float), (list, tuple, set, frozenset), (str,), (dict,)):
        if issubclass(kind, bases):
            return bases[-1]
    if kind.__name__ == "ndarray":
        return frozenset
    if _room(kind) == "PIL":
        return "image"
    return "time" if kind.__name__ in ("datetime", "Timestamp") else kind


def _room(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _plain(value: Any) -> Any:
    """Converts a value of another library to a Python value, or to an array that Arrow accepts."""
    room = _room(type(value))
    if room == "uuid":
        return str(value)
    if room == "pandas" and type(value).__name__ in ("NAType", "NaTType"):
        return None
    if room == "torch":
        value = value.detach().cpu()
        value = value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.numpy()
    elif room != "numpy":
        return value
    if value.dtype.kind in "Mm":
        # Python has no nanoseconds; times of coarser units become Python values.
        return value if value.dtype.name.endswith("[ns]") else value.tolist()
    if value.ndim == 1 and value.dtype.kind in "biuf":
        return value
    return value.tolist()


def mixed(name: str, what: str, kinds: Iterable[str]) -> StepOutputTypeError:
    """Returns the error for a column of several types."""
    return StepOutputTypeError(
        f'{what}: column "{name}" mixes {" and ".join(kinds)}. A column has one type; convert the values, or keep '
        "Python objects with self.pickle(value)."
    )


# Pickled objects


def pickle_value(value: Any, *args: Any, **kwargs: Any) -> bytes:
    """Pickles any object, including local classes and functions; further arguments go to `dill.dumps`."""
    import dill

    return _PICKLE + bytes(dill.dumps(value, *args, **kwargs))


def is_pickled(value: Any) -> bool:
    """Returns whether a value came from `pickle_value`: only those start with its mark."""
    return isinstance(value, bytes) and value.startswith(_PICKLE)


def unpickle(value: Any) -> Any:
    """Restores a value of `pickle_value`; other values are returned unchanged."""
    if not is_pickled(value):
        return value
    import dill

    return dill.loads(value[len(_PICKLE) :])


# Keys of nested rows


def has_keys(kind: pa.DataType) -> bool:
    """Returns whether a column's values are dictionaries, or lists of dictionaries."""
    return pa.types.is_struct(kind) or (is_list(kind) and has_keys(kind.value_type))


def is_list(kind: pa.DataType) -> bool:
    """Returns whether a column's values are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _none_keys(value: Any, path: _KeyPath, found: set[_KeyPath]) -> None:
    """Collects the paths of keys that are given as None; elements of lists share a path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if item is None:
                found.add((*path, key))
            elif isinstance(item, Mapping | list | tuple):
                _none_keys(item, (*path, key), found)
    elif isinstance(value, list | tuple):
        for item in value:
            if isinstance(item, Mapping | list | tuple):
                _none_keys(item, path, found)


def _pruner(kind: pa.DataType, given: frozenset[_KeyPath], path: _KeyPath = ()) -> Callable[[Any], Any] | None:
    """Returns a function that removes keys that were not given; None if values have no keys."""
    if is_list(kind):
        inner = _pruner(kind.value_type, given, path)
        return None if inner is None else lambda items: [None if item is None else inner(item) for item in items]
    if not pa.types.is_struct(kind):
        return None
    kept = {field.name for field in kind if (*path, field.name) in given}
    nested = {field.name: inner for field in kind if (inner := _pruner(field.type, given, (*path, field.name)))}

    def prune(row: dict[str, Any]) -> dict[str, Any]:
        return {
            key: nested[key](value) if key in nested and value is not None else value
            for key, value in row.items()
            if value is not None or key in kept
        }

    return prune
