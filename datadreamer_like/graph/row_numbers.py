"""Numbers of rows and positions that users give: Python's integers, numpy's, and tensors of one of them."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from datadreamer_like.errors import ArgumentTypeError, NoSuchRow

_MASK = " Keep rows by a mask with step.filter(..., with_indices=True)."


def is_whole_number(value: Any) -> bool:
    """Returns whether a value is one number, or an array or tensor of no dimension, that stands for a whole number."""
    return hasattr(value, "__index__") and getattr(value, "ndim", 0) == 0


def whole_number(value: Any, what: str, advice: str = "") -> int:
    """Returns a whole number as an int; booleans, which Python takes for 0 and 1, are refused with `advice`.

    `what` is what holds the number, for the error message.
    """
    if type(value) is int:
        return value
    if "bool" in str(getattr(value, "dtype", type(value).__name__)):
        raise ArgumentTypeError(f"{what} holds {value}; expected whole numbers.{advice}")
    try:
        return operator.index(value)
    except TypeError:
        raise ArgumentTypeError(f"{what} holds {value!r}; expected whole numbers.") from None


def row_numbers(values: Iterable[Any], what: str) -> np.ndarray[Any, Any]:
    """Returns the positions of rows as an array of 64 bit integers; see `whole_number`."""
    if isinstance(values, np.ndarray) and values.ndim == 1 and np.issubdtype(values.dtype, np.signedinteger):
        return values.astype(np.int64)
    if isinstance(values, range):
        return np.asarray(values, dtype=np.int64)
    try:
        listed = list(values)
    except TypeError:
        raise ArgumentTypeError(f"{what} is {values!r}; expected whole numbers.") from None
    if set(map(type, listed)) != {int}:
        listed = [whole_number(value, what, _MASK) for value in listed]
    try:
        return np.array(listed, dtype=np.int64)
    except OverflowError:
        raise NoSuchRow(f"{what} holds {max(listed, key=abs)}, which is larger than any row's number.") from None
