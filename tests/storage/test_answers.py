from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from datadreamer_like.errors import NewerFormat, StorageError
from datadreamer_like.storage.answers import ANSWERS_FORMAT, AnswerStore


def test_values_are_found_again_by_key_in_a_later_process_and_missing_ones_are_none(tmp_path: Path) -> None:
    keys = [os.urandom(16) for _ in range(1_500)]
    with AnswerStore(tmp_path / "deep" / "a.sqlite") as store:
        store.put_many([(key, key * 3) for key in keys])
        assert store.get_many([keys[0], b"unknown", keys[-1]]) == [keys[0] * 3, None, keys[-1] * 3]
    with AnswerStore(tmp_path / "deep" / "a.sqlite") as store:
        assert store.get_many(keys) == [key * 3 for key in keys]
        assert store.get_many([]) == []
        assert len(store) == 1_500


def test_a_key_stored_again_has_its_new_value_once() -> None:
    with AnswerStore(":memory:") as store:
        store.put_many([(b"k", b"old"), (b"l", b"other")])
        store.put_many([(b"k", b"new")])
        assert store.get_many([b"k", b"l"]) == [b"new", b"other"]
        assert len(store) == 2


def test_what_put_many_returned_from_survives_a_kill(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        from datadreamer_like.storage.answers import AnswerStore
        store = AnswerStore(sys.argv[1])
        for i in range(50):
            store.put_many([(b"%d" % i, b"v")])
        store._connection.execute("BEGIN IMMEDIATE")
        store._connection.execute("INSERT INTO answers VALUES (x'00', x'00')")
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.sqlite")], check=False)
    assert done.returncode == -signal.SIGKILL
    with AnswerStore(tmp_path / "a.sqlite") as store:
        assert store.get_many([b"%d" % i for i in range(50)]) == [b"v"] * 50
        assert len(store) == 50


def test_processes_that_write_one_file_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write, args=(tmp_path / "a.sqlite", number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with AnswerStore(tmp_path / "a.sqlite") as store:
        assert len(store) == 300 + 1


def _write(path: Path, number: int) -> None:
    with AnswerStore(path) as store:
        for i in range(100):
            store.put_many([(b"%d-%d" % (number, i), b"v"), (b"shared", b"%d" % number)])


def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with AnswerStore(path) as store:
        store._connection.execute(f"PRAGMA user_version = {ANSWERS_FORMAT + 1}")
    before = path.read_bytes()
    with pytest.raises(NewerFormat, match="newer version"):
        AnswerStore(path)
    assert path.read_bytes() == before


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.sqlite") as connection:
        connection.execute("CREATE TABLE answers (key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)")
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(StorageError, match="a.sqlite was written by a development version"):
        AnswerStore(tmp_path / "a.sqlite")


@pytest.mark.parametrize("damage", ["flipped bits", "zeroed", "cut", "text"])
def test_a_damaged_file_never_gives_a_wrong_answer(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    answers = {f"key {i}".encode(): f"the answer of {i}".encode() * 5 for i in range(400)}
    path = tmp_path / "a.sqlite"
    with AnswerStore(path) as store:
        store.put_many(list(answers.items()))
    content, dice = path.read_bytes(), random.Random(0)
    outcomes = set()

    def values() -> list[bytes | None]:
        with AnswerStore(path) as store:
            return store.get_many(list(answers))

    for _ in range(60):
        changed, place = bytearray(content), dice.randrange(len(content))
        if damage == "flipped bits":
            changed[place] ^= 1 << dice.randrange(8)
        elif damage == "cut":
            del changed[place:]
        else:
            changed[place : place + 64] = (b"\0" if damage == "zeroed" else b"answer ") * 64
        path.write_bytes(changed)
        found: list[bytes | None] | str
        try:
            found = values()
        except StorageError as error:
            found = str(error)
        if isinstance(found, str):
            outcomes.add("refused" if str(path) in found else found)
        else:
            right = [value is None or value == answer for value, answer in zip(found, answers.values(), strict=True)]
            outcomes.add(("missing" if None in found else "found") if all(right) else "wrong")
    assert outcomes <= {"refused", "missing", "found"}
    assert "refused" in outcomes
    assert ("missing" not in outcomes) or f"{path} is damaged" in caplog.text or damage in ("cut", "zeroed")


def test_a_damaged_file_is_reported_with_advice_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    path.write_bytes(b"this is no database, but it may have been one" * 100)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"damaged.*\.recover"):
        AnswerStore(path)
    assert path.read_bytes() == before


def test_a_file_damaged_in_the_middle_is_reported_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    keys = [os.urandom(16) for _ in range(2_000)]
    with AnswerStore(path) as store:
        store.put_many([(key, b"v" * 50) for key in keys])
    content = bytearray(path.read_bytes())
    content[4_096:-2_048] = b"\xaa" * (len(content) - 2_048 - 4_096)
    path.write_bytes(content)
    with AnswerStore(path) as store, pytest.raises(StorageError, match="damaged"):
        store.get_many(keys)


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.sqlite") as connection:
        connection.execute("CREATE TABLE bills (amount)")
    connection.close()
    with pytest.raises(StorageError, match="another program"):
        AnswerStore(tmp_path / "a.sqlite")


def test_a_full_disk_is_one_clear_error_and_earlier_answers_stay(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "a.sqlite") as store:
        store.put_many([(b"k", b"v")])
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageError, match="No space is left"):
            store.put_many([(b"large", b"x" * 100_000)])
        assert store.get_many([b"k", b"large"]) == [b"v", None]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be opened"):
        AnswerStore(tmp_path / "file" / "a.sqlite")


NO_LOCKS = """#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#define WITHOUT_LOCKS(name)                                                                 \\
    int name(int file, int command, ...) {                                                  \\
        va_list arguments;                                                                  \\
        va_start(arguments, command);                                                       \\
        void *argument = va_arg(arguments, void *);                                         \\
        va_end(arguments);                                                                  \\
        if (command == F_SETLK || command == F_SETLKW) { errno = ENOLCK; return -1; }       \\
        return ((int (*)(int, int, ...))dlsym(RTLD_NEXT, #name))(file, command, argument);  \\
    }
WITHOUT_LOCKS(fcntl)
WITHOUT_LOCKS(fcntl64)
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs a compiler and LD_PRELOAD")
def test_a_file_system_without_locks_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "no_locks.c").write_text(NO_LOCKS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "no_locks.so", "no_locks.c", "-ldl"], cwd=tmp_path, check=True)
    code = f"from datadreamer_like.storage.answers import AnswerStore; AnswerStore({str(tmp_path / 'answers')!r})"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_PRELOAD": str(tmp_path / "no_locks.so")},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert found.stderr.splitlines()[-1].startswith("datadreamer_like.errors.StorageError: ")
    assert "Its file system gives no locks on files" in found.stderr.splitlines()[-1]
