"""The types of JSON values, at every level of lists and objects, and how values are made to fit one type."""

from __future__ import annotations

import json
import math
from typing import Any

from datadreamer_like.storage.uniform import MAX_DEPTH

KINDS = {
    dict: "an object", list: "an array", str: "a text", int: "a number", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip


_EXACT = 2**53  # the integers up to this are floats too


class _Digits(str):
    """A number that no 64 bits hold, as its text."""


def parse_int(text: str) -> int | str:
    """Returns an integer; as text if it does not fit 64 bits, so that no digit is lost."""
    if len(text) < 19 or (len(text) <= 20 and -(2**63) <= int(text) < 2**63):
        return int(text)
    return _Digits(text)


def parse_float(text: str) -> float | str:
    """Returns a float; as text if it is too large for one."""
    value = float(text)
    return _Digits(text) if math.isinf(value) else value


class Shape:
    """The kinds of value at one place: a column, the elements of its lists, or a key of its objects."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._kinds: set[type] = set()
        self._has_nan = False
        self._has_long = False  # an integer that may have more digits than a float
        self._elements: Shape | None = None
        self._keys: dict[str, Shape] = {}

    def add(self, value: Any) -> None:
        """Adds a value; `ValueError` if it does not fit the earlier ones, with the place after the column's name.

        `RecursionError` if it is nested too deeply to be stored.
        """
        kind = type(value)
        if value is None:
            return
        if kind is float and value != value:
            self._has_nan = True
            return
        if kind is int and not -_EXACT <= value <= _EXACT:
            self._has_long = True
        if kind not in self._kinds:
            if self._kinds and {kind, *self._kinds} & {dict, list}:
                known = KINDS.get(next(iter(self._kinds)), "a text")
                raise ValueError(
                    f" is {KINDS.get(kind, 'a text')}; earlier rows have {known} there. Give the column one type."
                )
            self._kinds.add(kind)
        if kind is str and not value.isascii():
            checked_text(value)
        elif kind is list:
            self._elements = self._elements or self._inner()
            for element in value:
                self._elements.add(element)
        elif kind is dict:
            self._add_keys(value)

    def _add_keys(self, value: dict[str, Any]) -> None:
        for key, inner in value.items():
            if key not in self._keys:
                self._keys[checked_text(key)] = self._inner()
            try:
                self._keys[key].add(inner)
            except ValueError as error:
                raise ValueError(f', key "{key}"{error}') from None

    def _inner(self) -> Shape:
        if self._depth == MAX_DEPTH:
            raise RecursionError
        return Shape(self._depth + 1)

    @property
    def _is_text(self) -> bool:
        if self._has_long and (float in self._kinds or self._has_nan):
            return True
        return _Digits in self._kinds or (len(self._kinds) > 1 and not self._kinds <= {int, float})

    def is_changed(self) -> bool:
        """Returns whether `fitted` changes values."""
        inner = [*self._keys.values(), *filter(None, [self._elements])]
        has_missing = self._has_nan and bool(self._kinds) and not self._kinds <= {int, float}
        return self._is_text or has_missing or any(shape.is_changed() for shape in inner)

    def fitted(self, value: Any) -> Any:
        """Returns a value of the one type that all have: texts where plain values are mixed."""
        kind = type(value)
        if value is None or (kind is float and value != value):
            return None if self._is_text or (self._kinds and not self._kinds <= {int, float}) else value
        if kind is list and self._elements is not None:
            return [self._elements.fitted(element) for element in value]
        if kind is dict:
            return {key: self._keys[key].fitted(inner) for key, inner in value.items()}
        if not self._is_text:
            return value
        return str(value) if isinstance(value, str) else json.dumps(value)


def checked_text(text: str) -> str:
    """Returns a text; `ValueError` if it is not valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f" holds a text with half a surrogate pair ({text[error.start]!r}), which is not valid Unicode. Write both "
            "halves, or another character."
        ) from None
    return text
