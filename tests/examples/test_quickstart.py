"""The demo: one readable script over real data with a real LLM, which runs to its end and then has nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import EXAMPLES

SCRIPT = EXAMPLES / "quickstart.py"
# The same script with less of everything, so that it takes half a minute of two idle cores.
SMALLER = {
    ".take(1920)": ".take(160)",
    "LABELLED = 128": "LABELLED = 96",
    "train_size=128, test_size=600": "train_size=16, test_size=32",
    '"n": 32': '"n": 4',
    '"topic": topics': '"topic": topics[:4]',
    '"max_new_tokens": 36': '"max_new_tokens": 16',
    'text[: text.rfind(".") + 1]': "text",
    "epochs=12": "epochs=1",
    "epochs=48": "epochs=1",
    '"epochs": 4': '"epochs": 1',
    '["plausible"] > 0.15': '["plausible"] >= 0.0',
    'len(row["description"]) > 60': 'len(row["description"]) > 0',
    "real.take(128)": "real.take(16)",
    "repeats=3, latency_texts=16, throughput_texts=64": "repeats=1, latency_texts=2, throughput_texts=8",
}


def test_the_script_is_short_and_its_data_small():
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 155
    assert sum(file.stat().st_size for file in (EXAMPLES / "data").iterdir()) <= 1_500_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_script_runs_to_its_end_and_again_without_work(run, tmp_path: Path) -> None:
    text = SCRIPT.read_text(encoding="utf-8").replace("Path(__file__).parent", f"Path({str(EXAMPLES)!r})")
    for large, small in SMALLER.items():
        assert large in text
        text = text.replace(large, small)
    script = tmp_path / "quickstart.py"
    script.write_text(text, encoding="utf-8")
    first = run(script, str(tmp_path / "out"))
    again = run(script, str(tmp_path / "out"), warm=True)
    assert "Pruned and 8 bit" in first.stdout
    assert "The exported student says:" in first.stdout
    assert not again.worked
    assert (tmp_path / "out" / "comparison" / "comparison.html").exists()
    assert first.stdout == again.stdout
