"""The command line: `datadreamer-like clean FOLDER` and `plan SCRIPT`, also as `python -m datadreamer_like`."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

from .errors import DataDreamerError, MissingFile, NotMade, NotTrained
from .graph.leftovers import clean
from .graph.plan import planning
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
    planner = commands.add_parser(
        "plan",
        help="show what a script would run, and what it would cost",
        description="Runs a script with its nodes planned instead of run: shows which are cached, which would run and "
        "why, and the requests, money and time that they take, as far as these are known. It sends no request, trains "
        "nothing and changes no result; other code of the script runs, up to where it needs what does not exist yet.",
    )
    planner.add_argument("script", help="the script's file")
    planner.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")
    given = parser.parse_args(arguments)
    try:
        if given.command == "plan":
            return _plan(given.script, given.arguments)
        count, size = clean(local_folder(given.folder), max(0, given.keep))
    except DataDreamerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except _ScriptFailed as failed:
        sys.stderr.write(f"{failed}\n")
        return 1
    sys.stdout.write(f"removed {count:,} result{'' if count == 1 else 's'}, {size / 1e6:,.1f} MB\n")
    return 0


class _ScriptFailed(Exception):
    """A script raised an error of its own; its message is what to show of it."""


def _own_frames(error: Exception) -> str:
    """Returns an error with the frames of the script alone, without those that run it."""
    inside = os.path.dirname(os.path.abspath(__file__))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not os.path.abspath(frame.filename).startswith(inside)
        and not any(other in frame.filename for other in ("runpy", "site-packages"))
    ]
    return "".join([*traceback.format_list(frames), *traceback.format_exception_only(error)]).rstrip()


def _plan(script: str, arguments: list[str]) -> int:
    """Runs a script with its sessions planned, and writes the plans to standard output."""
    if not os.path.isfile(script):
        raise MissingFile(f"There is no script {script}.")
    argv, path = sys.argv, sys.path
    sys.argv, sys.path = [script, *arguments], [os.path.dirname(os.path.abspath(script)), *sys.path]
    with planning() as plans:
        try:
            with suppress(NotMade, NotTrained):
                runpy.run_path(script, run_name="__main__")
        except DataDreamerError:
            raise
        except Exception as error:
            raise _ScriptFailed(_own_frames(error)) from error
        finally:
            sys.argv, sys.path = argv, path
            for plan in plans:
                sys.stdout.write(f"{plan}\n")
    if not plans:
        sys.stderr.write(f"{script} opens no session, so there is nothing to plan.\n")
    return 0 if plans else 1
