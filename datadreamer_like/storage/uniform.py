"""Values of users, numpy, pandas, torch and Arrow, turned into Python values of one kind per column.

Arrow converts some values without an error: times with and without a zone, a time among dates, nanoseconds, a
masked element. `Uniform` goes through a column level by level, elements of lists and values of keys included, and
refuses what would come back as something else.
"""

from __future__ import annotations

import datetime as dt
import decimal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import numpy as np

from datadreamer_like.errors import StepOutputTypeError

KeyPath = tuple[str, ...]


class Pickled(bytes):
    """A pickled Python object. Only this type marks a column as pickled: bytes of any content are data."""


MAX_DEPTH = 100  # of lists and dictionaries inside each other
PLAIN = {str, int, float, bool, bytes}
_NUMERIC = "biuf"

KEEP = "a step of your own can also keep Python objects, with self.pickle(value)."
CONVERT = f"A column has one type: convert the values; {KEEP}"
"""What to do about values of several types."""


class Uniform:
    """Makes the values of one column uniform; `name` and `what`, the owner of the rows, are for error messages.

    Attributes:
        none_keys: Paths of keys of nested rows that are given as None; elements of lists share a path.
    """

    def __init__(self, name: str, what: str) -> None:
        self.name = name
        self.what = what
        self.none_keys: set[KeyPath] = set()

    def values(self, values: list[Any], path: KeyPath = (), depth: int = 0) -> list[Any]:
        """Returns the values as one kind that Arrow stores unchanged; the same list if they already are."""
        kinds = set(map(type, values))
        kinds.discard(type(None))
        if len(kinds) == 1 and kinds <= PLAIN:
            return values
        if depth > MAX_DEPTH:
            raise StepOutputTypeError(f"{self._where(path)} holds values that are nested too deeply.")
        if Pickled in kinds:
            raise self.pickled_inside(path)
        if not kinds <= PLAIN:
            values = self._converted(values, path)
            kinds = set(map(type, values)) - {type(None)}
        if float in kinds and not kinds <= {int, float} and all(v != v for v in values if type(v) is float):
            values = [None if type(value) is float else value for value in values]  # pandas' missing value
            kinds.discard(float)
        families = set(map(_family, kinds))
        if len(families) > 1:
            raise self.mixed(kinds, path)
        family = next(iter(families), None)
        check = self._CHECKS.get(family)
        return values if check is None else check(self, values, path, depth)

    def _converted(self, values: list[Any], path: KeyPath) -> list[Any]:
        converted = []
        for value in values:
            kind = type(value)
            if value is not None and kind not in PLAIN:
                try:
                    value = _converter(kind)(value)  # type: ignore[arg-type]
                except (TypeError, ValueError, OverflowError) as error:
                    reason = "" if isinstance(error, TypeError) else f" ({error})"
                    raise StepOutputTypeError(
                        f"{self._where(path)} holds a value of type {kind.__qualname__}{reason}: {repr(value)[:100]}. "
                        f"Convert it to a text, number, date, list or dictionary; {KEEP}"
                    ) from error
            converted.append(value)
        return converted

    def _times(self, values: list[Any], path: KeyPath, depth: int) -> list[Any]:
        present = [value for value in values if isinstance(value, dt.datetime)]
        if len({value.utcoffset() is None for value in present}) > 1:
            raise self.mixed(["times with a time zone", "times without one"], path)
        if len(present) < len(values) and any(isinstance(value, np.datetime64) for value in values):
            if present and present[0].utcoffset() is not None:
                raise self.mixed(["times with a time zone", "times without one"], path)
            return self._in_nanoseconds(values, np.datetime64, path)
        zones = {_zone_name(value.tzinfo): value for value in present}
        if len(zones) > 1:
            return [value if value is None else value.astimezone(dt.UTC) for value in values]
        return values

    def _differences(self, values: list[Any], path: KeyPath, depth: int) -> list[Any]:
        if any(isinstance(value, np.timedelta64) for value in values):
            return self._in_nanoseconds(values, np.timedelta64, path)
        return values

    def _in_nanoseconds(self, values: list[Any], kind: Any, path: KeyPath) -> list[Any]:
        made = []
        for value in values:
            fine = value
            if value is not None and not isinstance(value, kind):
                coarse = kind(value, "us")
                fine = coarse.astype(f"{coarse.dtype.kind}8[ns]")
                if fine.astype(coarse.dtype) != coarse:
                    raise StepOutputTypeError(
                        f"{self._where(path)} holds nanoseconds and {value}, which does not fit 64 bits of "
                        "nanoseconds. Round the others to microseconds."
                    )
            made.append(fine)
        return made

    def _clock_times(self, values: list[Any], path: KeyPath, depth: int) -> list[Any]:
        for value in values:
            if value is not None and value.tzinfo is not None:
                raise StepOutputTypeError(
                    f"{self._where(path)} holds a time of day with a time zone ({value}), which would be lost. Use "
                    "datetimes, or texts: value.isoformat()."
                )
        return values

    def _decimals(self, values: list[Any], path: KeyPath, depth: int) -> list[Any]:
        for value in values:
            if value is not None and not value.is_finite():
                raise StepOutputTypeError(
                    f"{self._where(path)} holds Decimal('{value}'); decimals of a column are finite. Use None."
                )
        return values

    def _lists(self, values: list[Any], path: KeyPath, depth: int) -> list[Any]:
        arrays = [value for value in values if isinstance(value, np.ndarray)]
        if arrays:
            others = sum(value is not None for value in values) - len(arrays)
            if not others and len({array.dtype for array in arrays}) == 1:
                return values
            values = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
        flat = list(chain.from_iterable(value for value in values if value is not None))
        made = self.values(flat, path, depth + 1)
        if made is flat and all(type(value) is list for value in values if value is not None):
            return values
        rest = iter(made)
        return [None if value is None else list(islice(rest, len(value))) for value in values]

    def _dictionaries(self, values: list[Any], path: KeyPath, depth: int) -> list[Any]:
        rows = [value for value in values if value is not None]
        changed: dict[str, Iterator[Any]] = {}
        for key in dict.fromkeys(chain.from_iterable(rows)):
            if not isinstance(key, str):
                raise StepOutputTypeError(
                    f"{self._where(path)} holds a dictionary with the key {key!r}, which is not a string. Use "
                    f"{str(key)!r}; {KEEP}"
                )
            column = [row[key] for row in rows if key in row]
            inside = (*path, key)
            made = self.values(column, inside, depth + 1)
            if any(value is None for value in made):
                self.none_keys.add(inside)
            if made is not column:
                changed[key] = iter(made)
        if not changed:
            return values
        return [
            None if row is None else {key: next(changed[key]) if key in changed else row[key] for key in row}
            for row in values
        ]

    _CHECKS: dict[object, Callable[[Uniform, list[Any], KeyPath, int], list[Any]]] = {
        dt.datetime: _times,
        dt.timedelta: _differences,
        dt.time: _clock_times,
        decimal.Decimal: _decimals,
        list: _lists,
        dict: _dictionaries,
    }

    def mixed(self, kinds: Iterable[str | type], path: KeyPath = ()) -> StepOutputTypeError:
        """Returns the error for values of several kinds, given by name or type."""
        names = " and ".join(sorted(kind if isinstance(kind, str) else _label(kind) for kind in kinds))
        return StepOutputTypeError(f"{self._where(path)} mixes {names}. {CONVERT}")

    def pickled_inside(self, path: KeyPath = ()) -> StepOutputTypeError:
        """Returns the error for a pickled object that is not the whole value of a column."""
        return StepOutputTypeError(
            f"{self._where(path)} holds a pickled object inside a list or dictionary, where it would come back as "
            "bytes. Pickle the whole value of the column, or give the object a column of its own."
        )

    def _where(self, path: KeyPath) -> str:
        key = f", key {'.'.join(path)}," if path else ""
        return f'{self.what}: column "{self.name}"{key}'


def is_image(value: object) -> bool:
    """Returns whether a value is an image of Pillow."""
    return _room(type(value)) == "PIL"


def _room(kind: type) -> str:
    return kind.__module__.partition(".")[0]


@lru_cache(maxsize=1024)
def _family(kind: type) -> object:
    """Returns the same for types that fit into one column."""
    if kind in (int, float):
        return float
    if _room(kind) == "PIL":
        return "image"
    return next((family for base, family in _FAMILIES if issubclass(kind, base)), kind)


_FAMILIES: tuple[tuple[Any, object], ...] = (
    ((list, np.ndarray), list),
    ((dt.datetime, np.datetime64), dt.datetime),
    ((dt.timedelta, np.timedelta64), dt.timedelta),
    (dt.date, dt.date),
    (dt.time, dt.time),
    (decimal.Decimal, decimal.Decimal),
)


def _label(kind: type) -> str:
    if kind is Pickled:
        return "pickled objects"
    return {"ndarray": "list", "datetime64": "datetime", "timedelta64": "timedelta"}.get(kind.__name__, kind.__name__)


def _zone_name(zone: Any) -> str:
    return str(getattr(zone, "zone", None) or getattr(zone, "key", None) or zone)


@lru_cache(maxsize=1024)
def _converter(kind: type) -> Callable[[Any], Any]:
    """Returns the function that makes a Python value, or a flat array of numbers, of a value of this type."""
    known = _OF_ROOMS.get(_room(kind))
    if known is not None:
        return known
    if issubclass(kind, Enum) and not issubclass(kind, str | int | float | bytes):
        return _refused_member
    return next((convert for base, convert in _OF_BASES if issubclass(kind, base)), _refused)


def _same(value: Any) -> Any:
    return value


def _refused(value: Any) -> Any:
    raise TypeError


def _refused_member(value: Any) -> Any:
    raise ValueError("use its value, member.value")


def _of_set(value: Any) -> list[Any]:
    try:
        return sorted(value)  # an order that is the same in every process
    except TypeError:
        return sorted(value, key=repr)


_OF_BASES: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (dict, lambda value: value if type(value) is dict else dict(value)),
    (list, _same),
    ((tuple, range, deque, Iterator), list),
    ((set, frozenset), _of_set),
    (str, str.__str__),
    (int, int),
    (float, float),
    ((bytes, bytearray, memoryview), bytes),
    (Mapping, dict),
    (dt.datetime, _same),
    ((dt.date, dt.time, dt.timedelta, decimal.Decimal), _same),
)


def _of_numpy(value: Any) -> Any:
    if value is np.ma.masked:
        return None
    kind = value.dtype.kind
    if value.shape == ():
        value = value[()] if isinstance(value, np.ndarray) else value
        return _of_time(value) if kind in "Mm" else _of_number(value, kind)
    if kind in "MmVc" or value.dtype.char == "g":
        return [_of_numpy(element) for element in value]
    is_flat = value.ndim == 1 and kind in _NUMERIC and value.dtype.isnative and type(value) is np.ndarray
    return value if is_flat else value.tolist()


def _of_number(value: Any, kind: str) -> Any:
    if kind == "V":
        names = value.dtype.names
        return bytes(value) if names is None else {name: _of_numpy(value[name]) for name in names}
    if value.dtype.char == "g":
        if value == value and np.longdouble(float(value)) != value:
            raise ValueError("it has more digits than 64 bits hold")
        return float(value)
    if kind == "c":
        raise TypeError
    return value.item()


def _of_time(value: Any) -> Any:
    """Returns a date, time or difference of Python; one of numpy in nanoseconds where Python's would lose some."""
    if np.isnat(value):
        return None
    unit, _ = np.datetime_data(value.dtype)
    if unit in ("ns", "ps", "fs", "as"):
        coarse = value.astype(f"{value.dtype.kind}8[us]")
        if coarse.astype(value.dtype) != value:
            fine = value.astype(f"{value.dtype.kind}8[ns]")
            if fine.astype(value.dtype) != value:
                raise ValueError("it is finer than nanoseconds")
            return fine
        value = coarse
    if value.dtype.kind == "M" and unit in ("Y", "M", "W"):
        value = value.astype("M8[D]")
    if value.dtype.kind == "m" and unit in ("Y", "M", "generic"):
        raise ValueError("its length in days is not defined")
    made = value.item()
    if isinstance(made, int):  # numpy's answer for years that Python does not have
        raise ValueError("it is outside of what datetime holds")
    return made


def _of_pandas(value: Any) -> Any:
    name = type(value).__name__
    if name in ("NAType", "NaTType"):
        return None
    if name in ("Timestamp", "Timedelta"):
        if not (value.nanosecond if name == "Timestamp" else value.nanoseconds):
            return value.to_pydatetime() if name == "Timestamp" else value.to_pytimedelta()
        if name == "Timestamp" and value.tzinfo is not None:
            raise ValueError('nanoseconds of a time with a zone would be lost; round it, as in value.floor("us")')
        return value.to_numpy()
    if name in ("Series", "Categorical") or name.endswith(("Index", "Array")):
        return list(value)
    raise TypeError


def _of_torch(value: Any) -> Any:
    if not hasattr(value, "detach"):
        raise TypeError
    value = value.detach().cpu()
    return _of_numpy(value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.numpy())


def _of_arrow(value: Any) -> Any:
    return value.to_pylist() if hasattr(value, "to_pylist") else value.as_py()


def _of_uuid(value: Any) -> Any:
    return str(value) if type(value).__name__ == "UUID" else _refused(value)


_OF_ROOMS: dict[str, Callable[[Any], Any]] = {
    "numpy": _of_numpy, "pandas": _of_pandas, "torch": _of_torch, "pyarrow": _of_arrow, "uuid": _of_uuid, "PIL": _same,
}  # fmt: skip
