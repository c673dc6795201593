"""A result is found by what determines it, whatever its name; a node stays what it was, whatever is made later."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import StorageError
from datadreamer_like.steps import DataSource, Step, SuperStep


class Draw(Step):
    """Counts its runs; each gives another row."""

    runs = 0

    def setup(self):
        self.register_arg("value")
        self.register_input("texts", required=False)
        self.register_output("text")

    version = 1.0  # its code does not decide, so that `runs` may change

    def run(self):
        Draw.runs += 1
        return [f"{self.args['value']} {Draw.runs}"]


class Outer(SuperStep):
    def setup(self):
        self.register_arg("value")
        self.register_output("text")

    def run(self):
        return Draw("Inner", args={"value": self.args["value"]}).output["text"]


@pytest.fixture(autouse=True)
def _count():
    Draw.runs = 0


def draws(folder, *named, make=Draw):
    """Makes nodes by name and value; returns their rows, and how many ran."""
    Draw.runs = 0
    with DataDreamer(folder, verbose=False):
        nodes = [make(name, args={"value": value}) for name, value in named]
        return [node.output[0]["text"][:1] for node in nodes], Draw.runs


RENAMINGS = {
    "another name": ([("A", "x")], [("B", "x")], 0),
    "a name that another node had": ([("A", "x"), ("B", "y")], [("B", "x"), ("A", "y")], 0),
    "a node in front that takes the name": ([("A", "x"), ("A", "y")], [("A", "z"), ("A", "x"), ("A", "y")], 1),
    "a node in front that goes": ([("A", "x"), ("A", "y"), ("A", "z")], [("A", "y"), ("A", "z")], 0),
    "the other order": ([("A", "x"), ("B", "y"), ("C", "z")], [("C", "z"), ("A", "x"), ("B", "y")], 0),
    "one of two that are the same": ([("A", "x"), ("B", "x")], [("B", "x")], 0),
    "one more that is the same": ([("A", "x"), ("B", "x")], [("C", "x"), ("A", "x"), ("B", "x")], 1),
    "a name with other characters": ([("A", "x")], [("\u00c4/".replace("/", ":") + "\u4e2d", "x")], 0),
}


@pytest.mark.parametrize("make", [Draw, Outer])
@pytest.mark.parametrize("renaming", RENAMINGS)
def test_names_and_order_make_nothing_anew(tmp_path, renaming, make):
    first, second, more = RENAMINGS[renaming]
    assert draws(tmp_path, *first, make=make)[1] == len(first)
    values = [value for _, value in second]
    rows, runs = draws(tmp_path, *second, make=make)
    assert rows == values
    # A node inside one that is made anew may be found too.
    assert runs == more or (make is Outer and runs < more)
    assert draws(tmp_path, *second, make=make) == (values, 0)
    assert draws(tmp_path, *first, make=make)[1] == 0


def test_two_nodes_of_one_session_that_are_the_same_have_a_result_each(tmp_path):
    for _ in range(2):
        with DataDreamer(tmp_path, verbose=False):
            rows = [Draw(name, args={"value": "x"}).output[0]["text"] for name in "ABC"]
        assert rows == ["x 1", "x 2", "x 3"]


@pytest.mark.parametrize("name", [None, "Doubled"])
def test_unnamed_operations_in_front_make_nothing_anew(tmp_path, name):
    for in_front in (0, 1, 3):
        calls = []
        with DataDreamer(tmp_path, verbose=False):
            source = DataSource("Source", data={"x": [1, 2]})
            for number in range(in_front):
                source.map(lambda row, number=number: {"z": number}, lazy=False)
            doubled = source.map(
                lambda row, calls=calls: calls.append(1) or {"y": row["x"] * 2},
                lazy=False,
                **({"name": name} if name else {}),
            )
        assert list(doubled.output["y"]) == [2, 4]
        assert len(calls) == (0 if in_front else 2)


@pytest.mark.parametrize("change", ["value", "force", "name taken", "folder of the name removed"])
def test_a_node_that_is_kept_stays_what_it_was(tmp_path, change):
    with DataDreamer(tmp_path, verbose=False):
        kept = Draw("It", args={"value": "x"})
        path, rows = kept.dataset_path, kept.output
    with DataDreamer(tmp_path, verbose=False):
        if change == "name taken":
            DataSource("It", data={"text": ["y"]})
        elif change.startswith("folder"):
            (tmp_path / "it").unlink()
        else:
            Draw("It", args={"value": "y" if change == "value" else "x"}, force=change == "force")
    assert kept.dataset_path == path
    assert rows[0]["text"] == "x 1"
    assert kept.output["text"][0] == "x 1"
    with DataDreamer(tmp_path, verbose=False):
        assert Draw("New", inputs={"texts": kept.output["text"]}, args={"value": kept.output[0]["text"]}).output[0][
            "text"
        ]


def test_a_result_does_not_change_while_it_is_read_and_others_of_its_name_are_made(tmp_path):
    with DataDreamer(tmp_path, verbose=False):
        kept = Draw("It", args={"value": "x"})
    stop, wrong = threading.Event(), []

    def read():
        while not stop.is_set():
            text = kept.open_rows().values_at(0)["text"][0]
            if text != "x 1":
                wrong.append(text)

    thread = threading.Thread(target=read)
    thread.start()
    for value in range(15):
        with DataDreamer(tmp_path, verbose=False):
            Draw("It", args={"value": value})
    stop.set()
    thread.join()
    assert not wrong


def test_the_folder_of_a_steps_files_stays_where_it_was(tmp_path):
    class Files(Step):
        def setup(self):
            self.register_arg("text")
            self.register_output("path")

        def run(self):
            folder = self.get_run_output_folder_path()
            Path(folder, "file.txt").write_text(self.args["text"])
            return [f"{folder}/file.txt"]

    paths = []
    for text in ("a", "b", "a"):
        with DataDreamer(tmp_path, verbose=False):
            step = Files("Files", args={"text": text})
            paths.append(step.output[0]["path"])
            assert step.get_run_output_folder_path() == paths[-1].rpartition("/")[0]
            kept = step.map(lambda row: {"text": Path(row["path"]).read_text()}, lazy=False)
            assert kept.output[0]["text"] == text
    assert [Path(path).read_text() for path in paths] == ["a", "b", "a"]
    assert (tmp_path / "files" / "file.txt").read_text() == "a"


def test_a_copied_session_whose_links_became_folders_works_and_is_linked_again(tmp_path):
    draws(tmp_path / "a", ("A", "x"), ("B", "y"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b" / "a").is_symlink()
    assert draws(tmp_path / "b", ("A", "x"), ("B", "y")) == (["x", "y"], 0)
    assert (tmp_path / "b" / "a").is_symlink()
    shutil.move(tmp_path / "a", tmp_path / "c")
    assert draws(tmp_path / "c", ("A", "x"), ("B", "y")) == (["x", "y"], 0)


def test_a_link_of_the_user_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "it").symlink_to(tmp_path / "mine")
    with (
        DataDreamer(tmp_path / "out", verbose=False),
        pytest.raises(StorageError, match="was not written by this package"),
    ):
        Draw("It", args={"value": "x"})
    assert (tmp_path / "out" / "it").resolve() == tmp_path / "mine"


def test_a_file_system_without_links_keeps_and_finds_results(tmp_path, monkeypatch):
    def no_links(*args, **options):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.symlink", no_links)
    for runs in (1, 0):
        assert draws(tmp_path, ("A", "x")) == (["x"], runs)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("call", ["os.symlink", "os.replace", "os.fsync", "pathlib.Path.mkdir"])
def test_a_disk_that_is_full_or_closed_is_one_error_of_ours_and_the_next_run_goes_on(tmp_path, monkeypatch, code, call):
    draws(tmp_path, ("A", "x"))

    def refused(*args, **options):
        raise OSError(code, os.strerror(code), "the file")

    with DataDreamer(tmp_path, verbose=False), monkeypatch.context() as patch:
        patch.setattr(call, refused)
        with pytest.raises(StorageError, match="no space left|no permission"):
            Draw("B", args={"value": "y"})
    assert draws(tmp_path, ("A", "x"), ("B", "y"))[0] == ["x", "y"]
    assert draws(tmp_path, ("A", "x"), ("B", "y")) == (["x", "y"], 0)
