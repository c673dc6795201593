from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

from warm import CONTEXT

from datadreamer_like.storage.key_locks import KeyLocks

KEYS = [bytes([number]) * 16 for number in range(6)]


def other_process(path: Path, calls: Connection) -> None:
    locks = KeyLocks(path)
    calls.send(locks.others_came)
    while (call := calls.recv()) is not None:
        name, arguments = call
        calls.send(getattr(locks, name)(*arguments))


def test_a_key_is_locked_by_one_process_until_it_unlocks_it_or_dies(tmp_path: Path) -> None:
    locks = KeyLocks(tmp_path / "locks")
    assert not locks.others_came
    assert locks.marks[:] == locks.mark
    assert locks.lock_all()
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=other_process, args=(tmp_path / "locks", there))
    process.start()

    def other(name: str, *arguments: object) -> object:
        here.send((name, arguments))
        return here.recv()

    assert here.recv() is True
    assert locks.marks[:] != locks.mark
    assert [other("lock", key) for key in KEYS] == [False] * 6
    locks.unlock_all_but([KEYS[4], KEYS[1]])
    assert [other("lock", key) for key in KEYS] == [True, False, True, True, False, True]
    assert [locks.lock(key) for key in KEYS] == [False, True, False, False, True, False]
    assert not locks.lock_all()
    other("unlock", [KEYS[0]])
    assert locks.lock(KEYS[0])
    process.kill()
    process.join(20)
    assert all(locks.lock(key) for key in KEYS)
    locks.close()
    alone = KeyLocks(tmp_path / "locks")
    assert not alone.others_came
    alone.close()
