"""Tests of a file in Triton's interpreter, which runs the GPU kernels on a machine without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def passes_interpreted(file: str, chosen: str = "") -> None:
    """Runs the tests of the file whose names match the expression `chosen` (all without one) in the interpreter."""
    pytest.importorskip("triton")
    # The interpreter computes in NumPy, which warns of lanes that the kernel masks.
    options = ["-q", "-p", "no:xdist", "-W", "ignore::RuntimeWarning", "-k", chosen]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, file],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
