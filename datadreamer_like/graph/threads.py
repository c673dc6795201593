"""Ctrl-C: threads that it ends, which do not keep the interpreter alive, and code of the script that ignores it."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# Python delivers an interrupt to a thread only between two waits.
_POLL_SECONDS = 0.1
_INTERRUPT_SECONDS = 1.2
interrupts: Counter[int] = Counter()
"""How often Ctrl-C was raised in each thread, by its identifier."""


@contextlib.contextmanager
def counting_interrupts() -> Iterator[None]:
    """Counts what Ctrl-C raises in the main thread inside the block; a handler that is not Python's own stays."""

    def interrupt(number: int, frame: Any) -> None:
        interrupts[threading.get_ident()] += 1
        signal.default_int_handler(number, frame)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            with contextlib.suppress(ValueError):  # stopped in a different thread
                signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt_check() -> Callable[[], None]:
    """Returns a function that raises KeyboardInterrupt if this thread was interrupted since this call.

    A function of the script, such as one with a bare `except:`, may have caught it: what it then returned is no value.
    """
    thread = threading.get_ident()
    before = interrupts[thread]

    def check() -> None:
        if interrupts[thread] != before:
            raise KeyboardInterrupt

    return check


def uninterrupted(function: Callable[..., T], *args: Any) -> T:
    """Calls a function of the script; raises KeyboardInterrupt if it caught one."""
    check = interrupt_check()
    value = function(*args)
    check()
    return value


class Task(Generic[T]):
    """A function that runs in a daemon thread, in a copy of the caller's context, from now on."""

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._returned: T
        self._error: BaseException | None = None
        self._done = threading.Event()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=self._run, args=(context, function), name=name, daemon=True)
        self._thread.start()

    def _run(self, context: contextvars.Context, function: Callable[[], T]) -> None:
        try:
            self._returned = context.run(function)
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def done(self) -> bool:
        """Whether the function has returned or raised."""
        return self._done.is_set()

    def wait(self) -> None:
        """Waits for the function; the wait can be interrupted."""
        while not self._done.wait(_POLL_SECONDS):
            pass

    def result(self) -> T:
        """Waits for the function, and returns its result or raises its error; the wait can be interrupted."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._returned

    def interrupt(self) -> None:
        """Raises KeyboardInterrupt in the thread, as soon as it runs Python code."""
        if not self.done() and self._thread.ident is not None:
            interrupts[self._thread.ident] += 1
            interrupt = ctypes.py_object(KeyboardInterrupt)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), interrupt)


def interrupt_all(tasks: Iterable[Task[Any]]) -> None:
    """Interrupts running tasks, and gives them a moment to store what they have and to clean up."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.interrupt()
    latest = time.monotonic() + _INTERRUPT_SECONDS
    for task in running:
        task._done.wait(max(0.0, latest - time.monotonic()))


class DaemonPool(ThreadPoolExecutor):
    """A pool whose threads do not keep the interpreter alive, and which an event loop accepts as its own."""

    def __init__(self, max_workers: int, name: str) -> None:
        super().__init__(max_workers, name)
        self._most, self._name = max_workers, name
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._started: list[threading.Thread] = []
        self._unfinished = 0
        self._closed = False
        self._counting = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Calls a function in a thread as soon as one is free."""
        future: Future[Any] = Future()
        with self._counting:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._unfinished += 1
            self._calls.put((future, partial(fn, *args, **kwargs)))
            if len(self._started) < min(self._unfinished, self._most):
                thread = threading.Thread(target=self._serve, name=f"{self._name}-{len(self._started)}", daemon=True)
                self._started.append(thread)
                thread.start()
        return future

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
            with self._counting:
                self._unfinished -= 1
            del call, future, function  # a thread that waits for the next call must not keep them

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads after the submitted calls; never waits, so that an event loop can close at once."""
        with self._counting:
            self._closed = True
            while cancel_futures and not self._calls.empty():
                call = self._calls.get()
                if call is not None:
                    call[0].cancel()
                    call[0].set_running_or_notify_cancel()
            for _ in self._started:
                self._calls.put(None)

    def join(self) -> None:
        """Waits, after `shutdown`, for the calls in progress."""
        for thread in self._started:
            while thread.is_alive():
                thread.join(_POLL_SECONDS)
