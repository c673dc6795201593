"""Conversion of Python values to Arrow arrays and back.

The metadata of a column's Arrow field holds what Arrow types cannot express: the `datasets` feature (class names,
images), whether values are pickled Python objects, and which keys of nested rows were given as None. Other keys that
are null in Arrow were missing, so they are left out when values are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datadreamer_like.errors import MissingExtra, StepOutputError, StepOutputTypeError

from .arrow_types import has_keys, is_list, stored_as
from .uniform import CONVERT, PLAIN, KeyPath, Pickled, Uniform, is_image

if TYPE_CHECKING:
    from datasets import Features

FEATURE = b"datasets feature"
PICKLED = b"pickled"
NONE_KEYS = b"keys given as None"


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
        if not is_unicode(name):
            raise StepOutputTypeError(f"{what}: {BAD_COLUMN_NAME.format(name)}")
        known = like.field(name) if like is not None and name in like.names else None
        array, metadata = _array(values, name, what, known)
        fields.append(pa.field(name, array.type, metadata=metadata or None))
        arrays.append(array)
    if len({len(array) for array in arrays}) > 1:
        lengths = {field.name: len(array) for field, array in zip(fields, arrays, strict=True)}
        raise StepOutputError(f"{what}: the columns have different lengths: {lengths}. Make them one length.")
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


BAD_COLUMN_NAME = "the column name {!r} is not valid Unicode, or has a zero byte. Rename the column."


def is_unicode(text: str) -> bool:
    """Returns whether a text can be written: it has no half surrogate pair."""
    return text.isascii() or text == text.encode(errors="replace").decode()


def is_column_name(name: str) -> bool:
    """Returns whether a script's column may have that name; zero bytes are in the names of a step's own columns."""
    return "\0" not in name and is_unicode(name)


def given_batch(batch: pa.RecordBatch, what: str, like: pa.Schema | None = None) -> pa.RecordBatch:
    """Returns an Arrow batch that a script made, in types that can be stored.

    Its mark of pickled columns counts only where `like`, the schema that the rows were read from, has it too.
    """
    fields, arrays = [], []
    for index, field in enumerate(batch.schema):
        array = stored_as(batch.column(index), field.name, what)
        metadata = dict(field.metadata or {})
        if like is None or field.name not in like.names or PICKLED not in (like.field(field.name).metadata or {}):
            metadata.pop(PICKLED, None)
        fields.append(pa.field(field.name, array.type, metadata=metadata or None))
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def to_columns(batch: pa.RecordBatch | pa.Table) -> dict[str, list[Any]]:
    """Returns the Python values of a batch by column."""
    return {field.name: to_list(batch.column(index), field) for index, field in enumerate(batch.schema)}


def frame_columns(value: Any) -> dict[str, Any] | None:
    """Returns the columns of an Arrow table or batch, or of a data frame of pandas; None for other values."""
    if isinstance(value, pa.Table | pa.RecordBatch):
        return {name: value.column(name).to_pylist() for name in value.schema.names}
    is_frame = any(
        base.__name__ == "DataFrame" and base.__module__.startswith("pandas") for base in type(value).__mro__
    )
    return {name: value[name] for name in value.columns} if is_frame else None


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
    if decode is None:
        return values
    try:
        return [None if value is None else decode(value) for value in values]
    except ImportError as error:  # of datasets, such as torchcodec for audio
        raise MissingExtra(
            f'Column "{field.name}" cannot be decoded: {error} Or leave it undecoded: '
            f'dataset.cast_column("{field.name}", Audio(decode=False)) before DataSource.'
        ) from error


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


def known_features(schema: pa.Schema) -> Features | None:
    """Returns the `datasets` features of Python values of a schema; None where they may not fit them.

    These are columns of types that are known only when rows are read, nested rows whose keys are optional, and pickles.
    """
    is_open = any(pa.types.is_null(field.type) or {NONE_KEYS, PICKLED} & set(field.metadata or {}) for field in schema)
    return None if is_open else features_of(schema)


def class_names(field: pa.Field, in_lists: bool = False) -> list[str] | None:
    """Returns the class names of a column of class labels, or with `in_lists` of lists of them; None for others."""
    feature = json.loads((field.metadata or {}).get(FEATURE, b"{}"))
    if in_lists and isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    return list(feature["names"]) if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None


def named_labels(field: pa.Field) -> Callable[[Any], Any] | None:
    """Returns a function that turns the class numbers in a column's values into class names; None if it has none."""

    def named(value: Any, feature: Any) -> Any:
        if value is None or not isinstance(feature, dict):
            return value
        if feature.get("_type") == "ClassLabel":
            return None if value < 0 else feature["names"][value]
        if isinstance(value, list):
            return [named(each, feature.get("feature")) for each in value]
        return {key: named(each, feature.get(key)) for key, each in value.items()} if isinstance(value, dict) else value

    if not labels_in(field):
        return None
    return partial(named, feature=json.loads(field.metadata[FEATURE]))


def without_pickles(schema: pa.Schema) -> pa.Schema:
    """Returns a schema whose columns hold bytes where they were marked as pickled Python objects."""
    return pa.schema(
        field.with_metadata({key: value for key, value in (field.metadata or {}).items() if key != PICKLED})
        for field in schema
    )


def labels_in(field: pa.Field) -> dict[KeyPath, list[str]]:
    """Returns the class names at every place of a column's values that holds class labels."""

    def collect(feature: Any, path: KeyPath) -> Iterator[tuple[KeyPath, list[str]]]:
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            yield path, feature["names"]
        elif isinstance(feature, dict):
            for key, inner in feature.items():
                yield from collect(inner, (*path, key))

    return dict(collect(json.loads((field.metadata or {}).get(FEATURE, b"{}")), ()))


def pickled_columns(schema: pa.Schema) -> list[str]:
    """Returns the names of the columns that are known to hold pickled Python objects."""
    return [field.name for field in schema if PICKLED in (field.metadata or {})]


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
        return stored_as(values, name, what), {}
    values = values if isinstance(values, list) else list(values)
    kinds = set(map(type, values)) - {type(None)}
    if len(kinds) == 1 and kinds <= PLAIN and (known is None or not known.metadata):
        return _converted(values, name, what), {}
    is_known_as_pickled = known is not None and PICKLED in (known.metadata or {}) and not kinds <= PLAIN
    if Pickled in kinds and len(kinds) > 1 and (bytes in kinds or not is_known_as_pickled):
        raise Uniform(name, what).mixed(kinds)
    if is_known_as_pickled and any(map(_holds_pickled, values)):
        raise Uniform(name, what).pickled_inside()
    if Pickled in kinds or is_known_as_pickled:
        return pa.array([None if v is None else pickle_value(v) for v in values], pa.binary()), {PICKLED: b"1"}
    column = Uniform(name, what)
    values = column.values(values)
    array, metadata = _kept_feature(values, known)
    if array is None:
        array = stored_as(_converted(values, name, what), name, what)
        if has_keys(array.type):
            metadata[NONE_KEYS] = json.dumps(sorted(column.none_keys)).encode()
    return array, metadata


def _converted(values: list[Any], name: str, what: str) -> pa.Array:
    try:
        array = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, UnicodeEncodeError):
            raise StepOutputTypeError(
                f'{what}: column "{name}" holds a text with half a surrogate pair '
                f"({error.object[error.start]!r}), which is not valid Unicode. Fix it: "
                'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").'
            ) from error
        raise StepOutputTypeError(
            f'{what}: column "{name}" holds values that do not fit one type ({error}). {CONVERT}'
        ) from error
    except OverflowError as error:
        raise StepOutputTypeError(
            f'{what}: column "{name}" holds an integer beyond 64 bits. Store it as text or as a float.'
        ) from error
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _kept_feature(values: list[Any], known: pa.Field | None) -> tuple[pa.Array | None, dict[bytes, bytes]]:
    """Returns the values as a column of the known feature; None if they do not fit it."""
    data = (known.metadata or {}).get(FEATURE) if known is not None else None
    if data is None:
        data = _feature_of_images(values)
    if data is None:
        return None, {}
    from datasets.features.features import encode_nested_example, get_nested_type

    feature = _feature(data)
    if class_label := getattr(feature, "names", None):
        if not all(value is None or (type(value) is int and -1 <= value < len(class_label)) for value in values):
            return None, {}
        return pa.array(values, pa.int64()), {FEATURE: data}
    try:
        encoded = [None if value is None else encode_nested_example(feature, value) for value in values]
        kind = get_nested_type(feature)
        storage = kind.storage_type if isinstance(kind, pa.ExtensionType) else kind
        array = pa.array(encoded, storage)
    except (ValueError, TypeError, KeyError, AttributeError, pa.ArrowException):
        return None, {}  # other values than the column had
    return (pa.ExtensionArray.from_storage(kind, array) if kind is not storage else array), {FEATURE: data}


def _feature_of_images(values: list[Any]) -> bytes | None:
    """Returns the feature of a column of images, or of lists of them; None for others."""
    first = next((value for value in values if value is not None), None)
    depth = 0
    while isinstance(first, list):
        values = [each for value in values if value is not None for each in value]
        first, depth = next((value for value in values if value is not None), None), depth + 1
    if not is_image(first):
        return None
    feature: dict[str, Any] = {"_type": "Image"}
    for _ in range(depth):
        feature = {"_type": "List", "feature": feature}
    return json.dumps(feature, sort_keys=True).encode()


# Pickled objects


def pickle_value(value: Any, *args: Any, **kwargs: Any) -> bytes:
    """Pickles any object, including local classes and functions; further arguments go to `dill.dumps`."""
    if isinstance(value, Pickled):
        return value
    import dill

    return Pickled(dill.dumps(value, *args, **kwargs))


def _holds_pickled(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
    return any(isinstance(each, Pickled) or _holds_pickled(each) for each in inner)


def unpickle(value: Any) -> Any:
    """Restores a value of `pickle_value`, which can run code; values other than bytes are returned unchanged."""
    if not isinstance(value, bytes):
        return value
    import dill

    return dill.loads(value)


# Keys of nested rows


def _pruner(kind: pa.DataType, given: frozenset[KeyPath], path: KeyPath = ()) -> Callable[[Any], Any] | None:
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
