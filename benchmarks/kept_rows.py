"""The rows of a benchmark in a file of JSON lines, row by row, so that a run that was cut off goes on where it was."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def processor() -> str:
    """Name of the processor, and its flags for numbers of few bits."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value for key, _, value in (line.partition(":") for line in lines)}
    known = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
    flags = [flag for flag in known if flag in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.processor()).strip()} ({', '.join(flags)})"


class KeptRows:
    """Rows by name, kept in a file if there is one; those of other settings, or of another processor, are not found."""

    def __init__(self, path: Path | None, settings: Row) -> None:
        self.path, self.settings = path, {**settings, "processor": processor()}
        self._rows: dict[str, Row] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    found = json.loads(line)
                except ValueError:
                    continue  # the run was cut off while it wrote
                if found["settings"] == self.settings:
                    self._rows[found["name"]] = found["row"]

    def row(self, name: str, make: Callable[[], Row]) -> Row:
        """Returns the row of this name, which is made and saved unless the file has it."""
        if name in self._rows:
            print(f"{name}: from {self.path}", file=sys.stderr, flush=True)
            return self._rows[name]
        print(f"{time.strftime('%H:%M:%S')} {name} ...", file=sys.stderr, flush=True)
        self._rows[name] = made = make()
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                # On a line of its own, also after one that was cut off.
                file.write("\n" + json.dumps({"name": name, "settings": self.settings, "row": made}))
                file.flush()
                os.fsync(file.fileno())
        return made
