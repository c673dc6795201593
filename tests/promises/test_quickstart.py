"""The demo: one readable script over real data with a real LLM, which runs to its end and then has nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "quickstart.py"
# The same script with less of everything, so that it takes a minute and not several.
SMALLER = {
    ".take(1600)": ".take(96)",
    "train_size=230, test_size=500": "train_size=32, test_size=48",
    '"n": 160': '"n": 16',
    '"max_new_tokens": 80': '"max_new_tokens": 24',
    "epochs=2": "epochs=1",
    '"epochs": 3': '"epochs": 1',
    '["plausible"] > 0.3': '["plausible"] >= 0.0',
    "real.take(256)": "real.take(32)",
}


def test_the_script_is_short_and_its_data_small():
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 120
    assert sum(file.stat().st_size for file in (EXAMPLES / "data").iterdir()) <= 1_500_000


@pytest.mark.slow
def test_the_script_runs_to_its_end_and_again_without_work(tmp_path, smollm_gguf, minilm_path):
    text = SCRIPT.read_text(encoding="utf-8").replace("Path(__file__).parent", f"Path({str(EXAMPLES)!r})")
    for large, small in SMALLER.items():
        assert large in text
        text = text.replace(large, small)
    script = tmp_path / "quickstart.py"
    script.write_text(text, encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / "out")]
    first, again = (
        subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        for _ in range(2)
    )
    for done in (first, again):
        assert done.returncode == 0, done.stderr
        assert "Pruned and 8 bit" in done.stdout
        assert "The exported student says:" in done.stdout
    assert all(line.endswith(("found finished", "rows")) for line in again.stderr.splitlines()), again.stderr
    assert "Warning" not in first.stderr
    assert (tmp_path / "out" / "comparison" / "comparison.html").exists()
    assert first.stdout == again.stdout
