"""Running a step in a thread."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class BackgroundRun(Generic[T]):
    """A function that runs in a thread, in the context of the thread that started it.

    Args:
        function: The function.
        name: Name of the thread.
    """

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function = function
        self._value: T | None = None
        self._error: BaseException | None = None
        self._error_raised = False
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._run), name=name)
        self._thread.start()

    def result(self) -> T:
        """Waits, and returns the function's result or raises its error."""
        if self._thread is not threading.current_thread():
            self._thread.join()
        if self._error is not None:
            self._error_raised = True
            raise self._error
        return cast(T, self._value)

    def end(self) -> None:
        """Waits, and raises the function's error unless `result` has raised it already."""
        self._thread.join()
        if not self._error_raised:
            self.result()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error
