"""Steps side by side, as the first work of a fresh process, do not fail."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = """
    import os, sys
    sys.setswitchinterval(1e-5)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from datadreamer_like import DataDreamer
    from datadreamer_like.steps import CSVDataSource, DataSource, HFDatasetDataSource, HFHubDataSource, concurrent

    folder, work = sys.argv[1:]
    with open(f"{folder}/rows.csv", "w") as file:
        file.write("q\\n1\\n2\\n")
    with DataDreamer(f"{folder}/output", verbose=False):
        rows = [DataSource(f"Rows {k}", data={"q": [1, 2]}) for k in range(6)]
        if work == "saved":
            rows[0].export_to_hf_dataset(f"{folder}/saved")
        concurrent(*{
            "read": [lambda step=step: list(step.output["q"]) for step in rows],
            "export": [lambda step=step: step.export_to_hf_dataset(f"{folder}/{step.name}") for step in rows],
            "saved": [lambda k=k: HFDatasetDataSource(f"Saved {k}", f"{folder}/saved") for k in range(6)],
            "hub": [
                lambda k=k: HFHubDataSource(f"Hub {k}", "csv", split="train", data_files=f"{folder}/rows.csv")
                for k in range(4)
            ],
            "mixed": [
                lambda: rows[0].output.dataset, lambda: rows[1].export_to_hf_dataset(f"{folder}/1"), rows[2].head,
                lambda: rows[3].map(lambda row: {"z": 1}, lazy=False), lambda: rows[4].export_to_csv(f"{folder}/4"),
                lambda: rows[5].sort("q"), lambda: CSVDataSource("CSV", data_files=f"{folder}/rows.csv"),
            ],
        }[work])
"""


@pytest.mark.slow
@pytest.mark.parametrize("work", ["read", "export", "saved", "hub", "mixed"])
def test_steps_side_by_side_in_a_fresh_process(work: str, tmp_path: Path) -> None:
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), work],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
