"""Short tracebacks for errors that end a script: the user's own lines and the message, without library frames."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

from datadreamer_like.errors import DataDreamerError

FULL = "DATADREAMER_LIKE_FULL_TRACEBACK"

_PACKAGE = str(Path(__file__).resolve().parents[1])


def show_errors_briefly() -> None:
    """Shortens the traceback when one of this package's errors, or Ctrl-C, ends the script.

    The environment variable DATADREAMER_LIKE_FULL_TRACEBACK turns this off. An existing hook is not replaced.
    """
    if sys.excepthook is sys.__excepthook__ and not os.environ.get(FULL):
        sys.excepthook = _brief


def _brief(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("Interrupted. Finished work is saved: run the script again and it continues.\n")
    elif isinstance(error, DataDreamerError):
        own = [frame for frame in traceback.extract_tb(trace) if not _is_library(frame.filename)]
        sys.stderr.write("".join(traceback.format_list(own)))
        sys.stderr.write(f"{kind.__name__}: {error}\n")
    else:
        sys.__excepthook__(kind, error, trace)


def _is_library(file: str) -> bool:
    path = os.path.realpath(file)
    libraries = {os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib")}
    return file.startswith("<") or any(path.startswith(folder + os.sep) for folder in (*libraries, _PACKAGE))
