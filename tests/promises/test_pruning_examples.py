"""The examples of pruning run to their end, in their short form, and find their work when they run again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("minilm_path")
@pytest.mark.parametrize(
    ("script", "shown", "nodes"),
    [
        ("prune.py", "Movement with", 9),
        ("lottery_ticket.py", "random mask", 10),
    ],
)
def test_an_example_runs_to_its_end_and_again_without_work(script, shown, nodes, tmp_path):
    command = [sys.executable, str(EXAMPLES / script), "--short", str(tmp_path / "out")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=False, env=environment) for _ in range(2)
    )
    for each in (first, second):
        assert each.returncode == 0, each.stderr
        assert shown in each.stdout
        assert "Warning" not in each.stderr
    assert second.stderr.count("found finished") >= nodes
    assert second.stdout == first.stdout
