"""The examples of distillation run to their end, in their short form, and find their work when they run again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("smollm_gguf", "minilm_path")
@pytest.mark.parametrize(
    ("script", "shown"),
    [
        ("distil_llm.py", "of the teacher's answers, taught by"),
        ("distilbert.py", "Distilled, 3 layers"),
        ("born_again.py", "Born again, ensemble"),
    ],
)
def test_an_example_runs_to_its_end_and_again_without_work(script, shown, tmp_path):
    command = [sys.executable, str(EXAMPLES / script), "--short", str(tmp_path / "out")]
    runs = 1 if script == "distil_llm.py" else 2  # loading a real LLM again shows nothing more
    done = [
        subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        for _ in range(runs)
    ]
    for each in done:
        assert each.returncode == 0, each.stderr
        assert shown in each.stdout
        assert "Warning" not in each.stderr
    if runs == 2:
        trainers = [line for line in done[1].stderr.splitlines() if "layers:" in line or "generation 1:" in line]
        assert trainers
        assert all("found finished" in line for line in trainers), done[1].stderr
