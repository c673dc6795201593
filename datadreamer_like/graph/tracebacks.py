"""Short tracebacks for errors that end a script: the user's own lines and the message, without library frames."""

from __future__ import annotations

import os
import sys
import traceback
from types import TracebackType

from datadreamer_like.errors import DataDreamerError

from .installed import is_installed_file


def show_errors_briefly() -> None:
    """Shortens the traceback when one of this package's errors, or Ctrl-C, ends the script.

    The environment variable DATADREAMER_LIKE_FULL_TRACEBACK turns this off. An existing hook is not replaced.
    """
    if sys.excepthook is sys.__excepthook__ and not os.environ.get("DATADREAMER_LIKE_FULL_TRACEBACK"):
        sys.excepthook = _brief


def _brief(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("Interrupted. Finished work is saved: run the script again and it continues.\n")
    elif isinstance(error, DataDreamerError):
        own = [
            frame
            for frame in traceback.extract_tb(trace)
            if not frame.filename.startswith("<") and not is_installed_file(frame.filename)
        ]
        sys.stderr.write("".join(traceback.format_list(own)))
        sys.stderr.write(f"{kind.__name__}: {error}\n")
    else:
        sys.__excepthook__(kind, error, trace)
