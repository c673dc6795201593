"""Digests follow content; those of large files are remembered, never wrongly."""

import os

import pytest

from datadreamer_like.storage import digests


@pytest.fixture
def large_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "large.bin"
    path.write_bytes(b"a" * (17 * 2**20))
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


def test_a_large_files_digest_is_remembered_and_follows_its_content(large_file, tmp_path):
    first = digests.file_digest(large_file)
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1
    assert digests.file_digest(large_file) == first
    with large_file.open("r+b") as stream:
        stream.write(b"b")
    assert digests.file_digest(large_file) != first


def test_a_change_that_keeps_size_and_time_of_modification_is_seen(large_file):
    first, times = digests.file_digest(large_file), large_file.stat()
    with large_file.open("r+b") as stream:
        stream.write(b"b")
    os.utime(large_file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert large_file.stat().st_mtime_ns == times.st_mtime_ns
    assert digests.file_digest(large_file) != first


def test_without_a_home_folder_nothing_is_remembered(large_file, tmp_path, monkeypatch):
    first = digests.file_digest(large_file)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    assert digests.file_digest(large_file) == first
    assert not (tmp_path / "~").exists()


def test_a_file_changed_just_now_is_not_remembered(large_file, tmp_path):
    os.utime(large_file)
    digests.file_digest(large_file)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_note_costs_a_read_and_nothing_else(large_file, tmp_path):
    first = digests.file_digest(large_file)
    (note,) = (tmp_path / "cache").rglob("*.json")
    note.write_text("{")
    assert digests.file_digest(large_file) == first


def test_a_folders_digest_leaves_out_hidden_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    before = digests.folder_digest(tmp_path / "a")
    (tmp_path / "a" / ".lock").write_text("1")
    assert digests.folder_digest(tmp_path / "a") == before
    (tmp_path / "a" / "y").write_text("1")
    assert digests.folder_digest(tmp_path / "a") != before
