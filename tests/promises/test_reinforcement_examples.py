"""The examples of reinforcement learning and QLoRA run to their end, in a short form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.timeout(900)  # a slower machine takes its time
@pytest.mark.parametrize(("name", "said"), [("qlora", "The third has"), ("ppo", "nats from the model")])
def test_the_example_runs_to_its_end(tmp_path, minilm_path, name, said):
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(tmp_path / "out"), "--short"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert "Warning" not in done.stderr
