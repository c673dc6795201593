"""A process that trains on one of several devices; see `several_devices`. It ends with the process that started it."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path


def main() -> None:
    """Trains on the device of the environment's `RANK`, from the files in the folder that is the first argument.

    Nothing heavy is imported before it waits for the end of its parent.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from .several_devices import train_share

    train_share(Path(sys.argv[1]), int(os.environ["RANK"]))


def _end_with_parent() -> None:
    """Waits for the end of the input, a pipe whose other end is the parent's: even a killed process closes it."""
    while os.read(0, 1):
        pass
    os._exit(1)
