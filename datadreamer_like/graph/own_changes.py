"""Variables that a node's functions change themselves: counters, caches, lists of rejected rows.

The values that a function refers to are part of its fingerprint. If running it changes them, the next node with such a
function would have another fingerprint than in a run that finds the first node finished. So while a process lives, the
value after a node's run counts as the value before it. A value that the script changes itself counts as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

from .installed import is_installed

# Their ids do not identify a variable.
_VALUES = (str, bytes, int, float, NoneType)
_CODE = (FunctionType, ModuleType, type, NoneType, Enum)

Digest = Callable[[Any], bytes | None]
"""A function that digests a value on its own; None if it cannot."""


@dataclass(frozen=True, eq=False)
class Place:
    """A variable: an entry of a module's globals, an attribute of a class, a closure's cell, or an object itself.

    An argument of a node as a whole is one too: only a user's own class may change it.
    """

    holder: Any
    name: str | None = None
    is_argument: bool = False

    @property
    def key(self) -> tuple[int, str | None]:
        """Identifies the variable as long as it is held."""
        return id(self.holder), self.name

    def is_set(self) -> bool:
        """Returns whether the variable has a value."""
        return self.name is None or self.name in self._names()

    def value(self) -> Any:
        """Returns the current value; None if there is none."""
        if self.name is not None:
            return self._names().get(self.name)
        return self.holder.cell_contents if isinstance(self.holder, CellType) else self.holder

    def may_change(self, own: bool) -> bool:
        """Returns whether a node may change the value; with `own`, its class is one of the user."""
        value = self.value()
        if isinstance(value, _CODE) or hasattr(type(value), "__fingerprint__"):
            return False
        return not self.is_argument or own

    def _names(self) -> Mapping[str, Any]:
        return vars(self.holder) if isinstance(self.holder, type) else self.holder


def has_state(value: Any) -> bool:
    """Returns whether calling a value may change it: an object of a user's class, a method, a partial function."""
    if isinstance(value, MethodType | partial):
        return True
    return not isinstance(value, _CODE) and not is_installed(type(value).__module__)


@dataclass(frozen=True, eq=False)
class _Change:
    """A variable and its value, which stay held so that their ids are not reused, and the digests of the value."""

    place: Place
    value: Any
    after: bytes | None
    before: bytes


_changed: dict[tuple[int, str | None], _Change] = {}
_watched: ContextVar[list[Place] | None] = ContextVar("datadreamer_like_watched", default=None)


@contextmanager
def watching() -> Iterator[list[Place]]:
    """Collects the variables that are fingerprinted inside the block."""
    places: list[Place] = []
    token = _watched.set(places)
    try:
        yield places
    finally:
        _watched.reset(token)


def before_changes(place: Place, digest: Digest) -> bytes | None:
    """Records that a variable is fingerprinted; returns its digest before a run that changed it, if any."""
    places = _watched.get()
    if places is not None:
        places.append(place)
    for key in _keys(place):
        if key in _changed and digest(place.value()) == _changed[key].after:
            return _changed[key].before
    return None


def _keys(place: Place) -> list[tuple[int, str | None]]:
    """Returns the keys of a variable and of the object that it holds, which may be in other variables too."""
    value = place.value()
    return [place.key] if isinstance(value, _VALUES) else [place.key, (id(value), None)]


@contextmanager
def noting_changes(places: Iterable[Place], as_is: Digest, as_before: Digest) -> Iterator[None]:
    """Notes which variables the block, a node's run, changes."""
    before = []
    for place in places:
        old = as_is(place.value())
        known = [change for key in _keys(place) if (change := _changed.get(key)) is not None and change.after == old]
        before.append((place, old, known[0].before if known else as_before(place.value())))
    try:
        yield
    finally:
        for place, old, counts_as in before:
            new = as_is(place.value())
            if new is not None and new != old and counts_as is not None:
                change = _Change(place, place.value(), new, counts_as)
                _changed.update(dict.fromkeys(_keys(place), change))
