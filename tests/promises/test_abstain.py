"""The example of a classifier that abstains runs to its end, and again without work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "abstain.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_script_hands_over_what_it_is_not_sure_of_and_again_without_work(tmp_path, smollm_gguf, minilm_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out"), "--short"]
    first, again = (
        subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        for _ in range(2)
    )
    for done in (first, again):
        assert done.returncode == 0, done.stderr
    own = int(re.search(r"New rows: (\d+) of 16 answered", first.stdout)[1])
    assert f"{16 - own} handed over to the LLM" in first.stdout
    assert "Warning" not in first.stderr
    assert all(line.endswith(("found finished", "rows")) for line in again.stderr.splitlines()), again.stderr
    assert first.stdout == again.stdout
