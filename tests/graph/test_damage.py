"""Damaged files of a finished result are found by their checksums, named, and made again; they are never used."""

import logging
import os
import shutil
import time
from pathlib import Path

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import StorageError
from datadreamer_like.graph.node import Node
from datadreamer_like.steps import DataSource
from datadreamer_like.storage.seals import checksums, damaged_file, read_sealed, sealed


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(file):
    file.write_bytes(b"")


def zeroed(file):
    file.write_bytes(bytes(file.stat().st_size))


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def flipped_with_its_time(file):
    stat = file.stat()
    flipped(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def longer(file):
    with file.open("ab") as stream:
        stream.write(b"x")


def removed(file):
    file.unlink()


def replaced(file):
    copy = file.with_name("copy")
    copy.write_bytes(file.read_bytes()[::-1])
    os.replace(copy, file)


DAMAGES = [cut, empty, zeroed, flipped, flipped_with_its_time, longer, removed, replaced]


def run(folder):
    """Returns the rows of two steps; the second one moves rows, so it has an origin in a file."""
    with DataDreamer(folder):
        first = DataSource("Rows", data={"n": list(range(50))}).map(lambda row: {"n": row["n"] ** 2}, name="Squares")
        second = first.shuffle(seed=3, lazy=False, name="Shuffled")
        second.map(lambda row: row, name="Last", lazy=False)
        return list(second.output["n"]), second.trace(3).parents[0].index


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("session") / "out"
    return folder, run(folder)


FILES = [
    "node.json", "dataset/data-00000-of-00001.arrow", "dataset/state.json", "dataset/columns.schema",
    "dataset/dataset_info.json", "origin-0-0.npy",
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("follows", [True, False], ids=["copied without links", "copied with links"])
def test_a_damaged_result_is_named_and_made_again(finished, tmp_path, caplog, file, damage, follows):
    folder, expected = finished
    shutil.copytree(folder, tmp_path / "out", symlinks=not follows)
    damaged = next((tmp_path / "out" / ".results").glob(f"*/*/{file}")) if file != FILES[-1] else None
    damaged = damaged or next((tmp_path / "out" / ".results").glob("*/*/*.npy"))
    damage(damaged)
    with caplog.at_level(logging.INFO, "datadreamer_like"):
        assert run(tmp_path / "out") == expected
    if file == "node.json" and damage is removed:  # as if it had been killed before it was complete
        return
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert str(damaged) in warnings[0]
    assert " again: " in warnings[0]
    assert sum(": done" in record.getMessage() for record in caplog.records) == 1  # what depends on it is the same
    assert not [path for path in tmp_path.glob("out/[!.]*") if path.is_dir() and not path.is_symlink()]
    caplog.clear()
    assert run(tmp_path / "out") == expected
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("content", ["[1]", "1", "null", '{"a": 1}', "{", "\x00"])
def test_a_damaged_seal_costs_a_comparison_and_nothing_else(finished, tmp_path, content):
    folder, expected = finished
    shutil.copytree(folder, tmp_path / "out", symlinks=True)
    for seal in (tmp_path / "out" / ".results").rglob(".seal"):
        seal.write_text(content)
    assert run(tmp_path / "out") == expected


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_result_that_is_damaged_while_its_node_is_kept_is_refused(tmp_path, damage):
    with DataDreamer(tmp_path):
        rows = DataSource("Rows", data={"n": [1, 2]})
    damage(next(tmp_path.glob("rows/dataset/*.arrow")))
    with pytest.raises(StorageError, match=r'"Rows": .*\.arrow is damaged .*Run the script again'):
        list(rows.output["n"])


def test_a_damage_that_changes_the_result_reruns_what_depends_on_it(tmp_path):
    file = tmp_path / "file"

    class Read(Node):
        kind = "step"

        def __init__(self, name, *parents):
            super().__init__(name)
            self.parents = list(parents)
            self.find_or_make()

        def fingerprint_parts(self):
            return {f"parent {index}": parent.result_fingerprint for index, parent in enumerate(self.parents)}

        def build(self, draft):
            text = self.parents[0].text if self.parents else file.read_text()
            (draft / "text").write_text(text)
            return self.kept()

        @property
        def text(self):
            return (self.result_folder / "text").read_text()

    def texts():
        with DataDreamer(tmp_path / "out", verbose=False):
            first = Read("First")
            return first.text, Read("Second", first).text

    file.write_text("a")
    assert texts() == ("a", "a")
    file.write_text("b")
    assert texts() == ("a", "a")
    (tmp_path / "out" / "first" / "text").write_text("?")
    assert texts() == ("b", "b")


NODE_BYTES = ['{"format": null}', '{"format": "2"}', '{"format": 7}', "[]", "3", "null", "[" * 100_000]


@pytest.mark.parametrize("content", NODE_BYTES, ids=lambda content: content[:16])
@pytest.mark.parametrize("file", [".session.json", ".results/*/1/node.json"])
def test_any_content_of_a_note_without_its_checksum_is_damage(tmp_path, caplog, file, content):
    with DataDreamer(tmp_path):
        DataSource("Rows", data={"n": [1, 2]})
    next(tmp_path.glob(file)).write_text(content)
    assert_made_again_once(tmp_path, caplog)


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("file", [".session.json", ".results/*/1/node.json"])
def test_a_flipped_bit_of_the_format_is_damage_and_not_a_newer_version(tmp_path, caplog, file, bit):
    with DataDreamer(tmp_path):
        DataSource("Rows", data={"n": [1, 2]})
    note = next(tmp_path.glob(file))
    content = bytearray(note.read_bytes())
    content[content.index(b'"format": ') + len('"format": ')] ^= 1 << bit
    note.write_bytes(content)
    assert_made_again_once(tmp_path, caplog)


@pytest.mark.parametrize("format", [None, "2", [2], 2.0, True])
def test_a_format_that_is_no_number_is_damage(tmp_path, caplog, format):
    with DataDreamer(tmp_path):
        DataSource("Rows", data={"n": [1, 2]})
    note = next(tmp_path.glob(".results/*/1/node.json"))
    note.write_text(sealed(read_sealed(note) | {"format": format}))
    assert_made_again_once(tmp_path, caplog)


def assert_made_again_once(folder, caplog):
    for warnings in (1, 0):
        caplog.clear()
        with DataDreamer(folder):
            assert list(DataSource("Rows", data={"n": [1, 2]}).output["n"]) == [1, 2]
        said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(said) == warnings, said
        assert all("is damaged" in text for text in said)


def test_checksums_are_compared_once_a_copy(tmp_path, monkeypatch):
    big = tmp_path / "a" / "weights"
    big.parent.mkdir()
    big.write_bytes(os.urandom(20 * 2**20))
    sums = checksums(big.parent)
    opened = []
    opening = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **kw: opened.append(self.name) or opening(self, *args, **kw))
    assert damaged_file(big.parent, sums) is None
    assert "weights" not in opened
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for _ in range(3):
        assert damaged_file(tmp_path / "b", sums) is None
    assert opened.count("weights") == 1
    started = time.process_time()
    for _ in range(20):
        damaged_file(tmp_path / "b", sums)
    assert time.process_time() - started < 0.2
