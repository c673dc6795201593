"""Python objects as column values: pickled bytes with a prefix that distinguishes them from other bytes."""

from __future__ import annotations

from typing import Any

_MARK = b"\x00datadreamer_like pickle 1\x00"


def pickle_value(value: Any, *args: Any, **kwargs: Any) -> bytes:
    """Pickles any object, including local classes and functions; further arguments go to `dill.dumps`."""
    import dill

    return _MARK + bytes(dill.dumps(value, *args, **kwargs))


def is_pickled(value: Any) -> bool:
    """Returns whether a value came from `pickle_value`."""
    return isinstance(value, bytes) and value.startswith(_MARK)


def unpickle(value: Any) -> Any:
    """Restores a value of `pickle_value`; other values are returned unchanged."""
    if not is_pickled(value):
        return value
    import dill

    return dill.loads(value[len(_MARK) :])
