"""Scripts as users write them, run in processes of their own, and what they leave in their folder."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from warm import WarmProcess


@dataclass
class Script:
    """A script file; its process gets `arguments` as `sys.argv[1:]` and `variables` in its environment.

    Attributes:
        source: The text; it may be indented.
        file: Where it is written to.
        warm: Whether its processes have the heavy libraries loaded when they start, or are plain; see `warm.py`.
    """

    source: str
    file: Path
    arguments: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    warm: bool | Literal["plain"] = False

    def __post_init__(self) -> None:
        self.file.write_text(textwrap.dedent(self.source), encoding="utf-8")

    def start(self, *more: str, **variables: str) -> Any:
        """Starts the script and returns its process, with its output in pipes."""
        environment = {**os.environ, **self.variables, **variables}
        if self.warm:
            return WarmProcess(self.file, [*self.arguments, *more], environment, self.file.parent, self.warm == "plain")
        return subprocess.Popen(
            [sys.executable, str(self.file), *self.arguments, *more],
            env=environment,
            cwd=self.file.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *more: str, fails: bool = False, **variables: str) -> Any:
        """Runs the script to its end and returns the finished process; refuses an end that was not expected."""
        process = self.start(*more, **variables)
        out, err = process.communicate(timeout=200)
        assert (process.returncode != 0) == fails, f"{self.file.name} ended with {process.returncode}:\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns time of change and size of every file below a folder.

    A session of this process marks the folder as in use until it is collected: those that ended are, here.
    """
    gc.collect()
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def made(*nodes: Any) -> list[int]:
    """Returns what tells one making of a node's result from another: the file that describes it, never rewritten."""
    return [(node.folder / "node.json").stat().st_ino for node in nodes]
