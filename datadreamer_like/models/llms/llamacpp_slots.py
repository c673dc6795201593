"""Which prompt a slot of llama.cpp's server takes next: the one that shares most with the prompt in the slot's cache.

A slot keeps the keys and values of its last prompt, and computes only what follows the tokens that the next one shares
with it. So prompts of one instruction follow each other in a slot, in any order of the run.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from datadreamer_like.graph.threads import DaemonPool

# How many later prompts may overtake one.
_MOST_OVERTAKING = 256


class _Call(NamedTuple):
    prompt: str
    function: Callable[[int], Any]
    future: Future[Any]
    taken_before: int


class SlotPool:
    """Threads for as many calls at once as a server has slots; each call gets a slot of its own."""

    def __init__(self, slots: int) -> None:
        self._threads = DaemonPool(slots, "llama.cpp")
        self._lock = threading.Lock()
        self._waiting: list[_Call] = []
        self._taken = 0
        # The least recently used one first.
        self._free = list(range(slots))
        self._prompts = [""] * slots

    def submit(self, prompt: str, function: Callable[[int], Any]) -> Future[Any]:
        """Calls a function with the number of a slot that is free; `prompt` is the text that it sends there."""
        future: Future[Any] = Future()
        with self._lock:
            self._threads.submit(self._serve_next)  # raises after shutdown
            self._waiting.append(_Call(prompt, function, future, self._taken))
        return future

    def _serve_next(self) -> None:
        with self._lock:
            if not self._waiting:  # cancelled
                return
            slot, call = self._best()
            self._free.remove(slot)
            self._waiting.remove(call)
            self._taken += 1
            self._prompts[slot] = call.prompt
        try:
            if call.future.set_running_or_notify_cancel():
                call.future.set_result(call.function(slot))
        except BaseException as error:
            call.future.set_exception(error)
        finally:
            with self._lock:
                self._free.append(slot)

    def _best(self) -> tuple[int, _Call]:
        oldest = self._waiting[0]
        is_due = self._taken - oldest.taken_before >= _MOST_OVERTAKING
        pairs = [(slot, call) for call in ([oldest] if is_due else self._waiting) for slot in self._free]
        return max(pairs, key=lambda pair: shared_length(self._prompts[pair[0]], pair[1].prompt))

    def shutdown(self, *, cancel: bool = False) -> None:
        """Ends the threads after the submitted calls, or with `cancel` after those in progress; does not wait."""
        with self._lock:
            self._threads.shutdown(cancel_futures=cancel)
            waiting, self._waiting = self._waiting, [] if cancel else self._waiting
        for call in waiting if cancel else ():
            call.future.cancel()

    def join(self) -> None:
        """Waits, after `shutdown`, for the calls in progress."""
        self._threads.join()


def shared_length(one: str, other: str) -> int:
    """Returns the number of characters at the start of both texts that are the same."""
    return bisect_left(range(min(len(one), len(other))), True, key=lambda n: one[: n + 1] != other[: n + 1])
