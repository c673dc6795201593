from __future__ import annotations

import gc
import os
import signal
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from warm import CONTEXT

from datadreamer_like.storage.answers import AnswerStore, Claims
from datadreamer_like.storage.key_locks import KeyLocks

KEYS = [bytes([number]) * 16 for number in range(6)]


def serve(path: Path, calls: Connection) -> None:
    locks = KeyLocks(path)
    calls.send(locks.others_came)
    while True:
        name, arguments = calls.recv()
        calls.send(getattr(locks, name)(*arguments))


class Other:
    """The locks of another process, whose methods are called by name."""

    def __init__(self, path: Path) -> None:
        self.calls, there = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=serve, args=(path, there))
        self.process.start()
        self.others_came = self.calls.recv()

    def __call__(self, name: str, *arguments: object) -> object:
        self.calls.send((name, arguments))
        return self.calls.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(20)


def test_a_key_is_locked_by_one_process_until_it_unlocks_it_or_dies(tmp_path: Path) -> None:
    locks = KeyLocks(tmp_path / "locks")
    assert not locks.others_came
    assert not locks.another_came()
    assert locks.lock_all()
    other = Other(tmp_path / "locks")
    assert other.others_came
    assert locks.another_came()
    assert [other("lock", key) for key in KEYS] == [False] * 6
    locks.unlock_all_but([KEYS[4], KEYS[1]])
    assert [other("lock", key) for key in KEYS] == [True, False, True, True, False, True]
    assert [locks.lock(key) for key in KEYS] == [False, True, False, False, True, False]
    assert not locks.lock_all()
    other("unlock", [KEYS[0]])
    assert locks.lock(KEYS[0])
    other.kill()
    assert all(locks.lock(key) for key in KEYS)
    locks.close()
    alone = KeyLocks(tmp_path / "locks")
    assert not alone.others_came
    alone.close()


def test_a_file_that_was_emptied_tells_that_another_came(tmp_path: Path) -> None:
    locks = KeyLocks(tmp_path / "locks")
    assert locks.lock_all()
    (tmp_path / "locks").write_bytes(b"")
    assert locks.another_came()
    locks.close()


def test_locks_hold_across_the_deletion_of_their_file(tmp_path: Path) -> None:
    locks = KeyLocks(tmp_path / "locks")
    other = Other(tmp_path / "locks")
    assert other.others_came
    assert other("lock", KEYS[0]) is True
    assert locks.lock(KEYS[1])
    assert not locks.renew()
    (tmp_path / "locks").unlink()
    assert locks.renew()
    assert locks.lock(KEYS[1])
    # The other process still has the old file only.
    assert not locks.lock(KEYS[0])
    assert other("renew") is True
    assert [other("lock", key) for key in KEYS[:3]] == [True, False, True]
    assert [locks.lock(key) for key in KEYS[:4]] == [False, True, False, True]
    locks.unlock([KEYS[1]])
    assert other("lock", KEYS[1]) is True
    other.kill()
    assert locks.lock_all()
    locks.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_forked_child_keeps_its_claims_when_it_forgets_those_of_its_parent(tmp_path: Path) -> None:
    parent = Claims(AnswerStore(tmp_path / "answers"))
    assert parent.take(KEYS[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of earlier tests
        child = os.fork()
    if not child:
        signal.alarm(10)
        try:
            mine = Claims(AnswerStore(tmp_path / "answers"))
            while mine.wait(KEYS[1], lambda: None) is not None:
                time.sleep(0.001)
            del parent
            gc.collect()
            (tmp_path / "has it").touch()
            time.sleep(10)
        finally:
            os._exit(0)
    try:
        until = time.monotonic() + 8
        while not (tmp_path / "has it").exists() and time.monotonic() < until:
            parent.let_others_in()
            time.sleep(0.001)
        assert not parent.take(KEYS[1])
        assert parent.wait(KEYS[1], lambda: None) is not None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert parent.wait(KEYS[1], lambda: None) is None
    parent.close()
