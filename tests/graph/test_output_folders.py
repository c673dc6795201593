"""Folders that cannot be a session's are refused with one error of ours, before anything is written."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DataDreamerError, DefinitionError, SessionError, StorageError
from datadreamer_like.models import LLM, Answer
from datadreamer_like.steps import DataSource

ADDRESSES = [
    "s3://bucket/run", "gs://bucket", "hf://datasets/me/x", "file:///tmp/x", "abfs://c@a/x", "memory://x", "S3://x",
    "s3:/b", "https://example.com/x", "dbfs:/run",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_refused_and_nothing_is_made(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SessionError, match="is an address; results are saved in a local folder"):
        DataDreamer(address)
    assert not os.listdir()


class Same(LLM):
    model_name = "same"

    def answer_batch(self, requests):
        return [Answer([request.prompt]) for request in requests]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_no_cache_folders(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="cache_folder_path: .* is an address"):
        Same(cache_folder_path=address)
    assert not os.listdir()


def test_a_cache_in_the_home_folder_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Same(cache_folder_path="~/cache").run(["a"])
    assert os.listdir() == ["home"]
    assert list((tmp_path / "home" / "cache").glob("*.sqlite"))


@pytest.mark.parametrize("path", ["", " ", "a\0b", "~nobody-has-this-name-14/run", "\ud800/x"])
def test_texts_that_are_no_path_are_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SessionError, match="output folder|not a path"):
        DataDreamer(path)
    assert not os.listdir()


@pytest.mark.parametrize("name", ["\ud800", "a\udfffb"])
def test_names_that_cannot_be_written_are_refused(tmp_path, name):
    with DataDreamer(tmp_path, verbose=False):
        with pytest.raises(DefinitionError, match="not valid Unicode"):
            DataSource(name, data={"n": [1]})
        with pytest.raises(DefinitionError, match="not valid Unicode"):
            DataSource("Rows", data={"n": [1]}).save(name=name)


@pytest.mark.parametrize("path", [None, 1, b"bytes", ["a"], object()])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ArgumentTypeError, match="output folder must be a path"):
        DataDreamer(path)


def test_the_home_sign_is_the_home_folder_also_in_a_path_object(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path in ("~/run", Path("~/run"), "~"):
        with DataDreamer(path, verbose=False) as session:
            assert session.folder.is_relative_to(tmp_path / "home")
            DataSource("Rows", data={"n": [1]})
    assert not os.listdir()
    with DataDreamer("a~b", verbose=False):
        pass
    assert os.listdir() == ["a~b"]


def linked(path, target):
    path.symlink_to(target)
    return path


def written(path, text=""):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


# Paths that cannot be a folder, below a folder with a file.
KINDS = {
    "link to nothing": lambda folder: linked(folder / "out", "/nowhere/at/all"),
    "below a link to nothing": lambda folder: linked(folder / "out", "/nowhere/at/all") / "run",
    "link to itself": lambda folder: linked(folder / "out", folder / "out"),
    "file": lambda folder: folder / "file",
    "below a file": lambda folder: folder / "file" / "run",
    "link to a file": lambda folder: linked(folder / "out", folder / "file"),
    "device": lambda folder: Path("/dev/null"),
    "pipe": lambda folder: os.mkfifo(folder / "out") or folder / "out",
    "too long a name": lambda folder: folder / ("x" * 300),
    "too long a path": lambda folder: folder.joinpath(*["x" * 200] * 30),
    "folder in place of the note": lambda folder: (
        (folder / "out" / ".session.json").mkdir(parents=True) or folder / "out"
    ),
    "file in place of the locks": lambda folder: written(folder / "out" / ".locks").parent,
    "of the system": lambda folder: Path("/proc/run"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_paths_that_cannot_be_a_folder_are_one_error_of_ours_and_the_next_session_works(tmp_path, kind):
    written(tmp_path / "file", "mine")
    path = KINDS[kind](tmp_path)

    def start():
        with DataDreamer(path, verbose=False):
            pass

    with pytest.raises(DataDreamerError) as caught:
        start()
    assert isinstance(caught.value, SessionError | StorageError)
    assert len(str(caught.value)) > 40
    assert not DataDreamer.initialized()
    assert (tmp_path / "file").read_text() == "mine"
    with DataDreamer(tmp_path / "another", verbose=False):
        assert DataSource("Rows", data={"n": [1]}).output.num_rows == 1


@pytest.mark.parametrize("encoding", ["C", "POSIX"])
@pytest.mark.parametrize(
    "name",
    ["Gr\u00f6\u00dfe", "\u4e2d\u6587", "caf\u00e9 \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")],
)
def test_names_that_the_file_system_cannot_encode_have_a_folder_too(tmp_path, encoding, name):
    script = f"""
        import sys
        assert sys.getfilesystemencoding() == "ascii", sys.getfilesystemencoding()
        from datadreamer_like import DataDreamer
        from datadreamer_like.steps import DataSource
        name = {name.encode("unicode_escape")!r}.decode("unicode_escape")
        with DataDreamer(sys.argv[1], verbose=False):
            steps = [DataSource(name + end, data={{"n": [1]}}) for end in ("", "", "\\u00e4", "\\u00f6")]
            assert len({{step.folder for step in steps}}) == 4
            assert [step.output.num_rows for step in steps] == [1] * 4
            assert steps[0].name == name
        print(*[step.manifest.name == name for step in steps])
    """
    environment = {
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "LC_ALL": encoding, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
    }  # fmt: skip
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "out")]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
    assert all(path.name.isascii() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("name", ["x" * 400, "...", "a\nb\tc", "CON", "a\u0000b", "\u202ename", "~", "-rf", "*"])
def test_names_of_every_kind_have_a_folder_of_their_own(tmp_path, name):
    for _ in range(2):
        with DataDreamer(tmp_path / "out", verbose=False):
            step = DataSource(name, data={"n": [1]})
            assert step.output.num_rows == 1
            assert step.name == name
            assert step.folder.parent == tmp_path / "out"
            assert step.folder.is_symlink()
    assert (tmp_path / "out").is_dir()
    assert len(list((tmp_path / "out" / ".results").iterdir())) == 1
