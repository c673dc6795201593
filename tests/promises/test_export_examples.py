"""The example of exports runs to its end in its short form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.usefixtures("smollm_gguf", "minilm_path")
def test_export_everywhere_ends_with_a_table_of_what_each_runtime_computes(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "export_everywhere.py"), "--short", str(tmp_path / "out")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("logits' distance")[2].splitlines()
    rows = [line.split() for line in table if line.startswith(("MiniLM", "SmolLM2"))]
    assert [(row[0], row[1]) for row in rows] == [("MiniLM", "onnx"), ("MiniLM", "onnx"), ("SmolLM2", "gguf")]
    assert float(rows[0][-1]) < 1e-4 < float(rows[1][-1]) < 0.3
    assert all((tmp_path / "out" / "exports" / name).is_dir() for name in ("MiniLM-onnx-int8", "SmolLM2-gguf-Q8_0"))
    assert "is about" in done.stdout
