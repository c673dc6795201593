"""The example that distils an embedder runs to its end in its short form, and again without work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "distil_embedder.py"


@pytest.mark.slow
def test_the_embedder_is_distilled_and_again_without_work(tmp_path: Path, minilm_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out"), "--short"]
    first, again = (
        subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        for _ in range(2)
    )
    for done in (first, again):
        assert done.returncode == 0, done.stderr
        assert "and distilled" in done.stdout
        assert "Warning" not in done.stderr
    assert (tmp_path / "out" / "student" / "model" / "modules.json").exists()
    assert "Student" in first.stderr
    assert all(line.endswith(("found finished", "rows")) for line in again.stderr.splitlines()), again.stderr
