"""Sessions: results found again, made anew when what decides them changes, and never half there."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import DefinitionError, NewerFormat, SessionError, StorageError
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.node import Node
from datadreamer_like.storage.seals import read_sealed, sealed


class Work(Node):
    """The smallest node: writes its argument into a file, and counts how often it works."""

    kind = "step"
    runs = 0

    def __init__(self, name, argument, **kwargs):
        self.argument = argument
        super().__init__(name, **kwargs)
        self.find_or_make()

    def fingerprint_parts(self):
        return {"argument text": fingerprint(self.argument)}

    def build(self, draft):
        type(self).runs += 1
        (draft / "result").write_text(str(self.argument))
        return self.kept(rows=1)

    def result(self):
        return (self.folder / "result").read_text()


@pytest.fixture(autouse=True)
def _count():
    Work.runs = 0


def test_a_finished_node_is_found_and_not_made_again(tmp_path):
    for _ in range(2):
        with DataDreamer(tmp_path):
            assert Work("Do it", "a").result() == "a"
    assert Work.runs == 1
    assert (tmp_path / "do-it" / "node.json").exists()


def test_a_change_says_what_changed_and_its_undoing_finds_the_older_result(tmp_path, caplog):
    caplog.set_level(logging.INFO, "datadreamer_like")
    for argument in ("a", "b", "a", "b"):
        with DataDreamer(tmp_path):
            assert Work("Do it", argument).result() == argument
    assert Work.runs == 2
    assert caplog.text.count('rerunning "Do it": argument text changed') == 1


def test_force_makes_it_again(tmp_path):
    for _ in range(3):
        with DataDreamer(tmp_path):
            assert Work("Do it", "a", force=True).result() == "a"
    assert Work.runs == 3
    with DataDreamer(tmp_path):
        pass
    assert len(list(tmp_path.glob(".results/*/*"))) == 1


def test_a_failing_node_leaves_nothing_and_the_earlier_result_stays(tmp_path):
    with DataDreamer(tmp_path):
        Work("Do it", "a")

    class Fails(Work):
        def build(self, draft):
            (draft / "result").write_text("half")
            raise ZeroDivisionError

    with DataDreamer(tmp_path), pytest.raises(ZeroDivisionError):
        Fails("Do it", "b")
    assert (tmp_path / "do-it" / "result").read_text() == "a"
    with DataDreamer(tmp_path):
        assert Work("Do it", "a").result() == "a"
    assert Work.runs == 1


def test_names_are_numbered_and_refused(tmp_path):
    with DataDreamer(tmp_path):
        names = [Work(name, name).name for name in ("Do it", "do IT", "Do it #2", "Do it")]
        assert names == ["Do it", "do IT #2", "Do it #2 #2", "Do it #3"]
        with pytest.raises(DefinitionError, match='has a "/"'):
            Work("a/b", 1)
        with pytest.raises(DefinitionError, match="needs a name"):
            Work("  ", 1)


def test_no_two_nodes_share_a_folder_whatever_they_are_called(tmp_path):
    with DataDreamer(tmp_path):
        folders = [Work(name, index).folder for index, name in enumerate(["A #2", "A", "A", "a", "A #2"])]
        assert len(set(folders)) == 5
        long = [Work("x" * 300 + end, end) for end in ("1", "2")]
        assert len({node.folder for node in long}) == 2
        assert [node.result() for node in long] == ["1", "2"]


def test_a_result_that_a_later_session_has_replaced_is_still_ones_own(tmp_path):
    with DataDreamer(tmp_path):
        first = Work("Do it", "a")
    with DataDreamer(tmp_path):
        second = Work("Do it", "b")
    assert (first.result_folder / "result").read_text() == "a"
    assert (second.result_folder / "result").read_text() == "b"
    assert first.result_folder.parent.parent == second.result_folder.parent.parent == tmp_path / ".results"
    shutil.rmtree(tmp_path / ".results")
    with pytest.raises(StorageError, match='"Do it" is no longer in'):
        _ = first.result_folder


def test_a_long_chain_has_a_card_in_the_run_that_finds_it_too(tmp_path):
    for _ in range(2):
        with DataDreamer(tmp_path, verbose=False):
            node = Work("0", 0)
            for index in range(1, 400):
                before, node = node, Work(str(index), index)
                node.parents = [before]
                node.__dict__.pop("card", None)
            assert [card.name for card in node.card.lineage()] == [str(index) for index in range(400)]


def test_sessions_do_not_nest_and_do_not_share_names(tmp_path):
    with DataDreamer(tmp_path / "a"), pytest.raises(SessionError, match="do not nest"), DataDreamer(tmp_path / "b"):
        pass
    assert not DataDreamer.initialized()
    with DataDreamer(tmp_path / "a"):
        assert Work("x", 1).name == "x"
    with DataDreamer(tmp_path / "a"):
        assert Work("x", 1).name == "x"


def test_of_threads_that_start_sessions_at_once_all_but_one_are_refused(tmp_path):
    ready, done, opened, refused = threading.Barrier(8), threading.Barrier(8), [], []

    def start():
        session = DataDreamer(tmp_path, verbose=False)
        ready.wait()
        try:
            session.start()
            opened.append(session)
        except SessionError as error:
            refused.append(str(error))
        done.wait()

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for session in opened:
        session.stop()
    assert len(opened) == 1
    assert all("sessions do not nest" in text for text in refused)
    with DataDreamer(tmp_path, verbose=False):
        pass


def test_start_and_stop_work_without_a_block(tmp_path):
    session = DataDreamer(tmp_path)
    session.start()
    assert DataDreamer.get_output_folder_path() == str(tmp_path)
    made = []
    thread = threading.Thread(target=lambda: made.append(Work("x", 1).session))
    thread.start()
    thread.join()
    assert made == [session]
    session.stop()
    assert not DataDreamer.initialized()


def test_a_memory_session_leaves_no_file():
    with DataDreamer(":memory:") as session:
        assert session.cache_folder is None
        folder = Work("x", 1).folder
        assert folder.exists()
    assert not folder.exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SessionError, match="is a file"):
        DataDreamer(tmp_path / "file")


def test_a_strange_folder_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "do-it").mkdir()
    (tmp_path / "do-it" / "mine").write_text("precious")
    with DataDreamer(tmp_path), pytest.raises(StorageError, match="was not written by this package"):
        Work("Do it", "a")
    assert (tmp_path / "do-it" / "mine").read_text() == "precious"


@pytest.mark.parametrize("file", [".session.json", "do-it/node.json"])
def test_a_folder_of_a_newer_version_is_refused(tmp_path, file):
    with DataDreamer(tmp_path):
        Work("Do it", "a")
    note = tmp_path / file
    note.write_text(sealed(read_sealed(note) | {"format": 99}))

    def again():
        with DataDreamer(tmp_path):
            Work("Do it", "a")

    with pytest.raises(NewerFormat, match=r"newer version .*format is 99"):
        again()


def test_a_damaged_note_in_a_folder_without_results_says_what_to_remove(tmp_path):
    (tmp_path / ".session.json").write_text("{")
    with pytest.raises(StorageError, match="is damaged .*Remove that file"):
        DataDreamer(tmp_path).start()


def test_a_folder_of_another_layout_is_refused(tmp_path):
    (tmp_path / ".session.json").write_text(sealed({"format": 1}))
    with pytest.raises(StorageError, match="another layout. Use another folder"):
        DataDreamer(tmp_path).start()


def test_two_processes_make_one_result_the_second_waits(tmp_path):
    script = textwrap.dedent(
        """
        import sys, time
        from datadreamer_like import DataDreamer
        from datadreamer_like.graph.node import Node

        class Slow(Node):
            kind = "step"
            def __init__(self, name):
                super().__init__(name)
                self.find_or_make()
            def fingerprint_parts(self):
                return {"a": "1"}
            def build(self, draft):
                with open(sys.argv[1] + "/made", "a") as stream:
                    stream.write("x")
                time.sleep(1)
                return self.kept(rows=1)

        with DataDreamer(sys.argv[1]):
            Slow("Slow")
        """
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert (tmp_path / "made").read_text() == "x"
    assert sum("another process is working on it" in text or "found finished" in text for text in said) == 1


def test_a_kill_at_any_moment_leaves_only_complete_results(tmp_path):
    script = textwrap.dedent(
        """
        import sys
        from datadreamer_like import DataDreamer
        from datadreamer_like.graph.node import Node

        class Work(Node):
            kind = "step"
            def __init__(self, name, value):
                self.value = value
                super().__init__(name)
                self.find_or_make()
            def fingerprint_parts(self):
                return {"value": str(self.value)}
            def build(self, draft):
                for i in range(20):
                    (draft / f"part {i}").write_text(str(self.value))
                return self.kept(rows=1)

        print("ready", flush=True)
        while True:
            for value in range(3):
                with DataDreamer(sys.argv[1], verbose=False):
                    Work("Work", value)
        """
    )
    for kill in range(6):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        threading.Event().wait(0.01 + 0.017 * kill)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        for folder in [tmp_path / "work", *(tmp_path / ".results").glob("*/*")]:
            if (folder / "node.json").exists():
                value = json.loads((folder / "node.json").read_text())["parts"]["value"]
                assert [(folder / f"part {i}").read_text() for i in range(20)] == [value] * 20


def test_progress_lines_appear_without_a_terminal(tmp_path):
    script = textwrap.dedent(
        """
        import sys, time
        from datadreamer_like import DataDreamer
        from datadreamer_like.graph.node import Node

        class Slow(Node):
            kind = "step"
            def __init__(self, name):
                super().__init__(name, progress_interval=1)
                self.find_or_make()
            def fingerprint_parts(self):
                return {"a": "1"}
            def build(self, draft):
                self.usage.total_rows = 40
                for _ in range(25):
                    self.usage.add(rows=1, requests=1, completion_tokens=7)
                    time.sleep(0.1)
                return self.kept(rows=40)

        with DataDreamer(":memory:"):
            Slow("Slow one")
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if "of 40 rows" in line]
    assert lines
    assert all(line.startswith("Slow one: ") and line.endswith(" so far") for line in lines)
    assert "Slow one: done, 40 rows" in done.stderr
    assert done.stdout == ""
