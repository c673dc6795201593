"""Runs a script of `examples/` as a user does, and again to see that it finds its work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from warm import WarmProcess

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 900  # a slower machine takes its time


class Output(NamedTuple):
    """What a run has printed."""

    stdout: str
    stderr: str

    @property
    def worked(self) -> list[str]:
        """The lines about nodes that were not found finished."""
        lines = [line for line in self.stderr.splitlines() if not line.startswith("warning: ")]
        return [line for line in lines if not line.endswith(("found finished", "rows"))]


@pytest.fixture
def run(tmp_path: Path, minilm_path: Path, smollm_gguf: Path) -> Callable[..., Output]:
    """Runs a script in an interpreter of its own, or in a warm process if only its results matter."""

    def call(script: Path, *arguments: str, warm: bool = False) -> Output:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        if warm:
            process = WarmProcess(script, list(arguments), environment, tmp_path)
        else:
            command = [sys.executable, str(script), *arguments]
            process = subprocess.Popen(
                command, env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        found = Output(*process.communicate(timeout=SECONDS))
        assert process.returncode == 0, found.stderr
        assert "Warning" not in found.stderr
        return found

    return call
