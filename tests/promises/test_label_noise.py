"""The example of wrong labels runs to its end, and again without work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "label_noise.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_example_of_label_noise_runs_to_its_end_and_again_without_work(tmp_path, minilm_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out"), "--short"]
    first, again = (
        subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        for _ in range(2)
    )
    for done in (first, again):
        assert done.returncode == 0, done.stderr
        assert "biased                50%" in done.stdout
    assert "Warning" not in first.stderr
    assert first.stdout == again.stdout
    assert all(line.endswith(("found finished", "rows")) for line in again.stderr.splitlines()), again.stderr
