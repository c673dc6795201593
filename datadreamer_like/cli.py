"""The command line: `datadreamer-like clean FOLDER`, also as `python -m datadreamer_like`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .errors import DataDreamerError
from .graph.leftovers import clean
from .graph.session import local_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="datadreamer-like")
    commands = parser.add_subparsers(dest="command", required=True)
    cleaning = commands.add_parser(
        "clean",
        help="remove what no script needs from a session's folder",
        description="Removes older results, unfinished work and leftovers of killed runs from a session's folder. The "
        "current results of all names and the answers of models stay.",
    )
    cleaning.add_argument("folder", help="the session's folder")
    cleaning.add_argument("--keep", type=int, default=0, metavar="N", help="keep the last N older results of each name")
    given = parser.parse_args(arguments)
    try:
        count, size = clean(local_folder(given.folder), max(0, given.keep))
    except DataDreamerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"removed {count:,} result{'' if count == 1 else 's'}, {size / 1e6:,.1f} MB\n")
    return 0
