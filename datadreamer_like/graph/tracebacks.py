"""Errors as the script's author needs them: the frames and the code of the script, not those of this package."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType

from datadreamer_like.errors import DataDreamerError

from .installed import is_installed_file, is_own_file


def show_briefly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Shows an error that ends the script, as `sys.excepthook` does, without the frames of this package.

    An interrupt ends the process, unless a prompt goes on after it.
    """
    if issubclass(kind, KeyboardInterrupt):
        called_by_python = sys._getframe().f_back is not None  # by a console, not at the end of a script
        goes_on = called_by_python or hasattr(sys, "ps1") or bool(sys.flags.inspect)
        what = "it" if goes_on else "the script"
        sys.stderr.write(f"Interrupted. Finished work is saved: run {what} again and it continues.\n")
        if not goes_on:
            _end_at_once()
    elif isinstance(error, DataDreamerError) or is_of_user(trace):
        sys.stderr.write("".join(_lines(error, trace)))
    elif (raised := _raised(error)) is not error and is_of_user(raised.__traceback__):
        frames = traceback.format_list(shown_frames(error, trace))
        sys.stderr.write("".join([*frames, *_lines(raised, raised.__traceback__)]))
    else:
        sys.__excepthook__(kind, error, trace)


def is_of_user(trace: TracebackType | None) -> bool:
    """Returns whether an error was raised in the user's code, or in a library that it called, that we called."""
    files = [frame.filename for frame in traceback.extract_tb(trace)]
    own = [index for index, file in enumerate(files) if is_own_file(file)]
    return bool(own) and any(not is_installed_file(file) for file in files[own[-1] + 1 :])


def _raised(error: BaseException) -> BaseException:
    """Returns the error that the user's code raised: in a generator, Python replaces StopIteration."""
    is_replaced = type(error) is RuntimeError and isinstance(error.__cause__, StopIteration)
    return error.__cause__ if is_replaced and error.__cause__ is not None else error


@contextlib.contextmanager
def noting_errors(call: str) -> Iterator[None]:
    """Adds a line to an error of the user's code inside the block; `call` says what called it: '"Name" called'."""
    try:
        yield
    except Exception as error:
        raised = _raised(error)
        if is_of_user(raised.__traceback__) and not getattr(raised, "__notes__", None):
            raised.add_note(f"It was raised by code of the script that {call}.")
        raise


def _end_at_once() -> None:
    """Ends the process as an interrupt does, without taking apart what is loaded: with torch that takes seconds."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def _lines(error: BaseException, trace: TracebackType | None) -> Iterator[str]:
    """Yields an error with the user's frames, those of libraries that the user's code called, and the notes."""
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    causes = [] if earlier is None else traceback.extract_tb(earlier.__traceback__)
    if not isinstance(error, DataDreamerError) and any(not is_installed_file(frame.filename) for frame in causes):
        assert earlier is not None
        yield from _lines(earlier, earlier.__traceback__)
        yield "\nThis error led to the next one:\n\n"
    yield from traceback.format_list(shown_frames(error, trace))
    yield "".join(traceback.format_exception_only(error)).removeprefix(f"{type(error).__module__}.")


def shown_frames(error: BaseException, trace: TracebackType | None) -> list[traceback.FrameSummary]:
    """Returns the user's frames, and those of libraries that the user's code called."""
    frames = traceback.extract_tb(trace)
    last_own = max((index for index, frame in enumerate(frames) if is_own_file(frame.filename)), default=-1)
    is_own_error = isinstance(error, DataDreamerError)
    return [
        frame
        for index, frame in enumerate(frames)
        if not is_installed_file(frame.filename) or (index > last_own and not is_own_error)
        if not frame.filename.startswith("<frozen")
    ]
