"""Claims: runs that share stored answers, in one process or several, do not ask for the same answer at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Self

from datadreamer_like.storage.answers import AnswerStore
from datadreamer_like.storage.key_locks import KeyLocks

# Another process's request ends without a notice.
_LOOK_AGAIN_SECONDS = 0.1


class _Together:
    """The runs of this process that are under way and share stored answers.

    `locks` are those that other processes see; None if the answers are in memory. A process that is alone takes all
    keys at once, as a lock for each takes a fifth of the time of a row whose answer comes at once, and keeps only those
    that are claimed when another process comes.
    """

    def __init__(self, locks: KeyLocks | None) -> None:
        self.locks = locks
        self.runs: list[Claims] = []
        self._was_alone = locks is not None
        self._has_all = locks is None

    def is_alone(self) -> bool:
        """Whether no other process may claim a key now; if not, `lock` is due for each, after this."""
        if self._has_all:
            if self.locks is None or not self.locks.are_shared:
                return True
            with _lock:
                self.share()
        elif self._was_alone and self.locks is not None:
            with _lock:
                if self._was_alone:
                    self._was_alone = False
                    self._has_all = not self.locks.are_shared and self.locks.lock_all()
            return self.is_alone()
        return False

    def share(self) -> None:
        """Lets other processes have what is not claimed, if one came; `_lock` is held."""
        if self._has_all and self.locks is not None and self.locks.are_shared:
            # A claim that is made meanwhile sees this, or is seen below.
            self._has_all = False
            self.locks.unlock_all_but([key for run in self.runs for key in list(run.held)])

    def lock(self, key: bytes) -> bool:
        """Locks a key, unless another process has it; `_lock` is held."""
        return self._has_all or self.locks is None or self.locks.lock(key)

    def unlock(self, keys: Sequence[bytes]) -> None:
        """Unlocks keys; `_lock` is held."""
        if self.locks is not None and not self._has_all:
            self.locks.unlock(keys)


_lock = threading.Lock()
_all: dict[Hashable, _Together] = {}


def _forget_in_child() -> None:
    # The runs and the locks are the parent's.
    global _lock
    _lock = threading.Lock()
    _all.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_in_child)


class Claims:
    """What one run is asking for. A run that wants the same answer waits until this one has stored it, or failed.

    A claim is held while a request is in flight, not while it waits for another try, and `close` gives up all of them.
    So no run waits for one that does nothing; claims of a process that is killed are free at once. Its methods may be
    called in any thread.

    Raises:
        StorageError: The file of locks next to that of the answers cannot be used.
    """

    def __init__(self, store: AnswerStore) -> None:
        self._shared: Hashable = os.path.realpath(store.path) if store.is_file else id(store)
        # A list if runs wait for the key.
        self.held: dict[bytes, list[Callable[[], None]] | None] = {}
        self._has_company = False
        with _lock:
            if self._shared not in _all:
                _all[self._shared] = _Together(KeyLocks(f"{self._shared}.locks") if store.is_file else None)
            self._together = _all[self._shared]
            self._runs = self._together.runs
            self._runs.append(self)
            if len(self._runs) > 1:
                for run in self._runs:
                    run._has_company = True

    def take(self, key: bytes) -> bool:
        """Claims a key; returns False if another run has it, or may have stored its answer, so that `wait` is due."""
        # Another run that begins now sees this, or is seen below.
        self.held[key] = None
        if self._has_company:
            return False
        return self._together.is_alone()

    def let_others_in(self) -> None:
        """Lets a process that came meanwhile claim what no run of this one does; due now and then."""
        with _lock:
            self._together.share()

    def wait(self, key: bytes, when_free: Callable[[], None]) -> float | None:
        """Claims a key after `take`, and returns None; otherwise in how many seconds it is to be called again.

        It is also to be called again if `when_free` is called, by a run of this process.
        """
        after: float | None = None
        with _lock:
            others = [run for run in self._runs if run is not self and key in run.held]
            if others:
                others[0].held[key] = [*(others[0].held[key] or ()), when_free]
                after = float("inf")
            elif not self._together.lock(key):
                after = _LOOK_AGAIN_SECONDS
            else:
                self.held.setdefault(key, None)
        if after is not None:
            self.give_up([key])
        return after

    def give_up(self, keys: Iterable[bytes]) -> None:
        """Lets other runs have keys whose answers are stored, or failed for now; keys that are not held are skipped."""
        waiting: list[Callable[[], None]] = []
        free = []
        with _lock:
            for key in keys:
                if key in self.held:
                    waiting += self.held.pop(key) or ()
                    if len(self._runs) == 1 or not any(key in run.held for run in self._runs):
                        free.append(key)
            if free:
                self._together.unlock(free)
        for when_free in waiting:
            when_free()

    def close(self) -> None:
        """Gives up all claims, at the end of the run."""
        self.give_up(list(self.held))
        with _lock:
            if self in self._runs:
                self._runs.remove(self)
                if not self._runs:
                    _all.pop(self._shared, None)
                    if self._together.locks is not None:
                        self._together.locks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
