"""kill -9 during an export: under the given name is the earlier export, the whole new one, or nothing."""

from __future__ import annotations

import os
import random
import signal
import textwrap
import time
from pathlib import Path

import datasets
import pytest
from warm import WarmProcess

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow, pytest.mark.kill]

SCRIPT = """
    import os, signal, sys
    from datadreamer_like import DataDreamer
    from datadreamer_like.steps import DataSource

    path, kind, word, dies_at = sys.argv[1:]

    def rows():
        for n in range(20_000):
            if n == int(dies_at):
                os.kill(os.getpid(), signal.SIGKILL)
            yield {"n": n, "word": word}

    with DataDreamer(":memory:", verbose=False):
        step = DataSource("Rows", data=rows)
        print("ready", flush=True)
        getattr(step, f"export_to_{kind}")(path)
"""


def run(script: Path, path: Path, kind: str, word: str, dies_at: int = -1, after: float | None = None) -> None:
    process = WarmProcess(script, [str(path), kind, word, str(dies_at)], dict(os.environ), script.parent)
    with process.stdout, process.stderr:
        process.stdout.readline()
        if after is not None:
            time.sleep(after)
            process.kill()
    assert process.wait() in (
        (0, -signal.SIGKILL) if after is not None else (0,) if dies_at < 0 else (-signal.SIGKILL,)
    )


def words(path: Path, kind: str) -> set[str] | None:
    """Returns the words of a whole export; None if there is none."""
    if not path.exists():
        return None
    if kind == "hf_dataset":
        read = datasets.load_from_disk(str(path))
        assert len(read) == 20_000
        return set(read["word"])
    lines = path.read_text().splitlines()
    assert len(lines) == 20_000 + (kind == "csv")
    return {"old" if "old" in line else "new" for line in lines[1:]}


@pytest.mark.parametrize("kind", ["json", "csv", "hf_dataset"])
def test_an_export_is_whole_or_absent_after_a_kill(kind: str, tmp_path: Path, kill_seed: int) -> None:
    script, path = tmp_path / "script.py", tmp_path / "out" / "rows"
    script.write_text(textwrap.dedent(SCRIPT))
    run(script, path, kind, "old", dies_at=15_000)
    assert words(path, kind) is None
    run(script, path, kind, "old")
    assert words(path, kind) == {"old"}
    run(script, path, kind, "new", dies_at=15_000)
    assert words(path, kind) == {"old"}
    rng = random.Random(f"{kind} {kill_seed}")
    for _ in range(4):
        run(script, path, kind, "new", after=rng.uniform(0, 0.4))
        assert words(path, kind) in ({"old"}, {"new"})
    run(script, path, kind, "new")
    assert words(path, kind) == {"new"}
    assert [file.name for file in path.parent.iterdir()] == ["rows"]
