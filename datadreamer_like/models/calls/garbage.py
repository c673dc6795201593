"""Fewer passes of Python's garbage collector while many answers are held."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Python looks for cycles after 700 new objects, of which a row has several. All of them live until their rows are
# written, so that each pass walks them in vain, which took a third of the time of a row whose answer comes at once.
_OBJECTS = 10_000

_lock = threading.Lock()
_runs = 0
_before: tuple[int, ...] = ()  # empty where the threshold was not changed


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Lets the collector of this process start after ten thousand new objects, until the last such block ends.

    It stays off where it is off, and a threshold that is set in a block stays.
    """
    global _runs, _before
    with _lock:
        _runs += 1
        first, *older = gc.get_threshold()
        if _runs == 1:
            _before = (first, *older) if 0 < first < _OBJECTS else ()
            if _before:
                gc.set_threshold(_OBJECTS, *older)
    try:
        yield
    finally:
        with _lock:
            _runs -= 1
            if not _runs and _before and gc.get_threshold() == (_OBJECTS, *_before[1:]):
                gc.set_threshold(*_before)
