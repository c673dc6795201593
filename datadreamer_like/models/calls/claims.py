"""Claims: runs of this process that share stored answers do not ask for the same answer at the same time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Self

from datadreamer_like.storage.answers import AnswerStore

_lock = threading.Lock()
# The runs that are under way, by what they share.
_runs: dict[Hashable, list[Claims]] = {}


class Claims:
    """What one run is asking for. A run that wants the same answer waits until this one has stored it, or failed.

    A claim is held while a request is in flight, not while it waits for another try, and `close` gives up all of them.
    So no run waits for one that does nothing. Its methods may be called in any thread.
    """

    def __init__(self, store: AnswerStore) -> None:
        self._shared: Hashable = os.path.realpath(store.path) if store.is_file else id(store)
        # A list if runs wait for the key.
        self._held: dict[bytes, list[Callable[[], None]] | None] = {}
        self.are_shared = False
        """Whether another run shares the stored answers, or did since this one began."""
        with _lock:
            self._runs = _runs.setdefault(self._shared, [])
            self._runs.append(self)
            if len(self._runs) > 1:
                for run in self._runs:
                    run.are_shared = True

    def take(self, key: bytes) -> bool:
        """Claims a key; returns False if another run has it, or may have stored its answer, so that `wait` is due."""
        # Another run that begins now sees this, or is seen below.
        self._held[key] = None
        return not self.are_shared

    def wait(self, key: bytes, when_free: Callable[[], None]) -> bool:
        """Claims a key after `take`; if another run has it, returns False and calls `when_free` when it is free."""
        with _lock:
            others = [run for run in self._runs if run is not self and key in run._held]
            if not others:
                self._held.setdefault(key, None)
                return True
            others[0]._held[key] = [*(others[0]._held[key] or ()), when_free]
        self.give_up([key])
        return False

    def give_up(self, keys: Iterable[bytes]) -> None:
        """Lets other runs have keys whose answers are stored, or failed for now; keys that are not held are skipped."""
        waiting: list[Callable[[], None]] = []
        with _lock:
            for key in keys:
                waiting += self._held.pop(key, None) or ()
        for when_free in waiting:
            when_free()

    def close(self) -> None:
        """Gives up all claims, at the end of the run."""
        with _lock:
            if self in self._runs:
                self._runs.remove(self)
            if not self._runs:
                _runs.pop(self._shared, None)
            keys = list(self._held)
        self.give_up(keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
