"""What killed, failed, forced and superseded runs leave is removed when the folder is used next."""

import subprocess
import sys
from pathlib import Path

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.graph.leftovers import OLDER_KEPT

SCRIPT = """
import os, signal, sys
from datadreamer_like import DataDreamer
from datadreamer_like.graph.node import Node

class Work(Node):
    kind = "step"
    def __init__(self, name, value, dies="", **options):
        self.value, self.dies = value, dies
        super().__init__(name, **options)
        self.find_or_make()
    def fingerprint_parts(self):
        return {"value": str(self.value)}
    def build(self, draft):
        self.resumed = (self.scratch / "state").exists()
        self.scratch.mkdir(parents=True, exist_ok=True)
        (self.scratch / "state").write_text("x" * 1000)
        (draft / "data").write_text(str(self.value) * 1000)
        if self.dies == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.dies == "fails":
            raise ZeroDivisionError
        if self.dies == "waits":
            print("ready", flush=True)
            sys.stdin.readline()
        return self.kept(rows=1)
"""
names: dict = {}
exec(SCRIPT, names)
Work = names["Work"]


def run(folder: Path, line: str, start: bool = False) -> subprocess.Popen:
    script = f"{SCRIPT}\nwith DataDreamer(sys.argv[1], verbose=False):\n    {line}\n"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdin=pipe, stdout=pipe, text=True)
    if not start:
        process.communicate()
    return process


def left(folder: Path) -> list[str]:
    """Returns the results with their values, and the unfinished work, sorted."""
    results = [place for place in folder.glob(".results/*/*")]
    texts = [(place / "data").read_text()[0] if (place / "node.json").exists() else "unfinished" for place in results]
    return sorted(texts) + [f"work of {path.name.partition('-')[0]}" for path in folder.glob(".work/*")]


@pytest.mark.parametrize("dies", ["killed", "fails"])
@pytest.mark.parametrize("options", ["", ", force=True"])
def test_what_runs_leave_that_died_before_a_change_is_removed(tmp_path, dies, options):
    run(tmp_path, "Work('It', 1)")
    for value in (1, 2, 3) if options else (2, 3, 4):
        run(tmp_path, f"Work('It', {value}, '{dies}'{options})")
    run(tmp_path, "Work('It', 5)")
    run(tmp_path, "Work('It', 5)")
    assert left(tmp_path) == ["1", "5"]
    assert (tmp_path / "it" / "data").read_text()[0] == "5"
    assert not list(tmp_path.glob(".locks/session-*"))


@pytest.mark.parametrize("name", ["It", "By another name"])
def test_unfinished_work_is_found_by_what_determines_it_and_removed_when_it_is_done(tmp_path, name):
    run(tmp_path, "Work('It', 1, 'killed')")
    run(tmp_path, "Work('Other', 2)")
    assert left(tmp_path)[-1:] == ["work of it"]
    assert run(tmp_path, f"sys.exit(7 * Work({name!r}, 1).resumed)").returncode == 7
    assert left(tmp_path) == ["1", "2"]


def test_a_temporary_table_of_a_killed_run_is_removed(tmp_path):
    script = """
import os, signal, sys
from datadreamer_like import DataDreamer
from datadreamer_like.steps import DataSource

def rows():
    yield {"n": 1}
    if os.environ.get("DIES"):
        os.kill(os.getpid(), signal.SIGKILL)

with DataDreamer(sys.argv[1], verbose=False):
    source = DataSource("Rows", data=rows)
    os.environ["DIES"] = sys.argv[2]
    source.sort("n")
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.run([*command, "yes"], check=False).returncode == -9
    assert len(list(tmp_path.glob(".work/rows-*"))) == 1
    run(tmp_path, "pass")
    assert not list(tmp_path.glob(".work/*"))


def test_work_of_nodes_inside_others_is_not_taken_for_that_of_another_parent(tmp_path):
    inner = """
class Outer(Work):
    def build(self, draft):
        Work("Inner", self.value, self.dies)
        return super().build(draft)
"""
    for made in ("Outer('A', 1, 'killed')", "Outer('B', 2, '')"):
        script = f"{SCRIPT}{inner}\nwith DataDreamer(sys.argv[1], verbose=False):\n    {made}\n"
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check="B" in made)
    assert [path.name.partition("-")[0] for path in tmp_path.glob(".work/*")] == ["a~inner"]


def test_a_living_process_keeps_its_unfinished_and_older_results(tmp_path):
    run(tmp_path, "Work('It', 1)")
    busy = run(tmp_path, "Work('It', 1, force=True); Work('It 2', 2, 'waits')", start=True)
    assert busy.stdout.readline() == "ready\n"
    with DataDreamer(tmp_path, verbose=False):
        Work("It", 3)
    assert left(tmp_path) == ["1", "1", "3", "unfinished", "work of it"]
    busy.communicate("\n")
    assert busy.returncode == 0
    with DataDreamer(tmp_path, verbose=False):
        assert (tmp_path / "it-2" / "data").read_text()[0] == "2"
    assert left(tmp_path) == ["1", "2", "3"]


def test_a_node_that_is_kept_keeps_its_result(tmp_path):
    with DataDreamer(tmp_path, verbose=False):
        kept = Work("It", 1)
    for value in (1, 2):
        with DataDreamer(tmp_path, verbose=False):
            Work("It", value, force=True)
    assert (kept.result_folder / "data").read_text()[0] == "1"
    assert left(tmp_path) == ["1", "1", "2"]


def test_older_results_have_a_bound_and_those_used_last_are_kept(tmp_path):
    count = OLDER_KEPT + 4
    for value in range(count):
        run(tmp_path, f"Work('It', chr(97 + {value})); Work('Another', 1)")
    run(tmp_path, "Work('It', 'd')")  # undone: it counts as used
    run(tmp_path, "Work('It', 'z')")
    run(tmp_path, "pass")
    letters = [chr(97 + value) for value in range(count)]
    assert left(tmp_path) == ["1", *sorted([*letters[-OLDER_KEPT + 1 :], "d", "z"])]


def clean(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "datadreamer_like", "clean", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_clean_command_leaves_current_results_and_answers(tmp_path):
    for value in (1, 2, 3, 4):
        run(tmp_path, f"Work('It', {value})")
    run(tmp_path, "Work('It', 5, 'killed')")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "answers").write_text("paid for")
    assert clean(tmp_path, "--keep", 2).stdout.startswith("removed 1 result, ")
    assert left(tmp_path) == ["2", "3", "4"]
    assert clean(tmp_path).stdout.startswith("removed 2 results, ")
    assert left(tmp_path) == ["4"]
    assert (tmp_path / ".cache" / "answers").exists()
    assert (tmp_path / "it" / "data").read_text()[0] == "4"


def test_the_clean_command_refuses_other_folders_and_those_in_use(tmp_path):
    (tmp_path / "mine").write_text("precious")
    done = clean(tmp_path)
    assert done.returncode == 1
    assert "is not the folder of a session" in done.stderr
    with DataDreamer(tmp_path / "out", verbose=False):
        done = clean(tmp_path / "out")
    assert done.returncode == 1
    assert "A process works with" in done.stderr
    assert "Traceback" not in done.stderr
