from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, NewerFormat, StorageError
from datadreamer_like.storage.database import connected
from datadreamer_like.storage.ledger import Ledger, budget_of, in_dollars, nanodollars
from datadreamer_like.storage.wal import damage_of_log


@pytest.mark.parametrize(
    ("text", "expected"), [("5 USD", 5 * 10**9), ("0.25 usd", 250_000_000), (" 1USD ", 10**9), (None, None)]
)
def test_a_budget_is_an_amount_in_us_dollars(text: str | None, expected: int | None) -> None:
    assert budget_of(text) == expected


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        (5, ArgumentTypeError, "with the currency"),
        (True, ArgumentTypeError, "with the currency"),
        ("5", DefinitionError, 'Write it as "5 USD"'),
        ("5 EUR", DefinitionError, "in US dollars"),
        ("5 €", DefinitionError, "in US dollars"),
        ("five USD", DefinitionError, "expected an amount"),
        ("-5 USD", DefinitionError, "expected an amount"),
        ("nan USD", DefinitionError, "expected an amount"),
        ("0 USD", DefinitionError, "above 0"),
        ("9999999999 USD", DefinitionError, "at most"),
    ],
)
def test_anything_else_is_refused_as_a_budget(given: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        budget_of(given)


def test_amounts_are_rounded_up_so_that_a_sum_is_never_too_low() -> None:
    assert nanodollars(0.25 / 1e6) == 250
    assert nanodollars(1e-12) == 1
    assert nanodollars(0.0) == 0
    assert [in_dollars(nanodollars(value)) for value in (5, 0.5, 0.00314159, 1e-6, 12_345.678)] == [
        "5.00 USD",
        "0.50 USD",
        "0.003142 USD",
        "0.000001 USD",
        "12345.68 USD",
    ]


def test_what_is_spent_and_what_is_reserved_count_together_by_account_and_in_all(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "deep" / "ledger.db")
    assert ledger.reserve("a", 60, 100, None)
    assert not ledger.reserve("a", 41, 100, None)
    assert ledger.reserve("a", 40, 100, None)
    assert ledger.reserve("b", 50, 100, 150)
    assert not ledger.reserve("b", 1, 100, 150)
    ledger.pay("a", 60, 10)
    assert (ledger.spent("a"), ledger.reserved("a")) == (10, 40)
    assert (ledger.spent(), ledger.reserved()) == (10, 90)
    assert ledger.reserve("b", 50, 100, 150)
    ledger.close()
    assert [file.name for file in tmp_path.rglob("*.lock") if "ledger.db-" in file.name] == []


def test_a_killed_process_s_reservations_count_as_spent(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from datadreamer_like.storage.ledger import Ledger
ledger = Ledger(sys.argv[1])
ledger.reserve("a", 60, None, None)
ledger.reserve("a", 30, None, None)
ledger.pay("a", 60, 5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "ledger.db"
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    with_ledger = Ledger(path)
    assert (with_ledger.spent("a"), with_ledger.reserved("a")) == (35, 0)
    assert not with_ledger.reserve("a", 66, 100, None)
    assert with_ledger.reserve("a", 65, 100, None)
    with_ledger.close()
    assert list(tmp_path.glob("ledger.db-*.lock")) == []


def _spend(path: Path, times: int) -> None:
    ledger = Ledger(path)
    for _ in range(times):
        if ledger.reserve("a", 10, 1_000, None):
            ledger.pay("a", 10, 7)
    ledger.close()


def test_processes_and_threads_that_share_a_ledger_keep_the_budget_together(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_spend, args=(path, 80)) for _ in range(2)]
    threads = [threading.Thread(target=_spend, args=(path, 40)) for _ in range(2)]
    for each in [*others, *threads]:
        each.start()
    for each in [*others, *threads]:
        each.join()
    ledger = Ledger(path)
    # 240 tries of 7: the last that fits is reserved with 10, so that at most 1,000 are spent.
    assert 1_000 - 10 < ledger.spent() <= 1_000
    assert ledger.reserved() == 0
    ledger.close()


def test_reservations_of_a_living_process_are_not_counted_as_spent(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path / "ledger.db"), Ledger(tmp_path / "ledger.db")
    assert first.reserve("a", 60, 100, None)
    assert (second.spent(), second.reserved()) == (0, 60)
    assert not second.reserve("a", 41, 100, None)
    first.pay("a", 60, 1)
    assert second.reserve("a", 41, 100, None)
    first.close()
    second.close()


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    for now in (0.0, 4e9, -1.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert ledger.reserve("a", 30, 100, None)
        os.utime(tmp_path / "ledger.db", (max(now, 0), max(now, 0)))
        again = Ledger(tmp_path / "ledger.db")
        assert again.reserved() > 0
        again.close()
    assert not ledger.reserve("a", 30, 100, None)
    ledger.close()


def _change(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        connection = connected(str(path))
        connection.execute(statement)
        connection.close()

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a ledger, but a text that is long enough to be taken for one" * 99),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.write_bytes(path.read_bytes()[:5_000]),
        lambda path: path.write_bytes(path.read_bytes()[:4_096] + bytes(len(path.read_bytes()) - 4_096)),
        _change("UPDATE entries SET nanodollars = 1 WHERE holder = ''"),
        _change("DROP TABLE entries"),
        lambda path: path.write_bytes(path.read_bytes().replace(b"account-a", b"account-\xff")),
    ],
    ids=["empty", "text", "zeros", "cut", "a page of zeros", "an amount", "no table", "a name"],
)
def test_a_damaged_ledger_is_refused_and_never_taken_for_an_empty_one(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    assert ledger.reserve("account-a", 60, 100, None)
    ledger.pay("account-a", 60, 50)
    ledger.close()
    damage(path)  # type: ignore[operator]
    content = path.read_bytes()
    with pytest.raises(StorageError, match=r"ledger\.db .*(damaged|another program).*"):
        Ledger(path)
    assert path.read_bytes() == content


def test_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger(path).close()
    connection = connected(str(path))
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(NewerFormat, match="newer version"):
        Ledger(path)


def _flipped(log: bytes, place: int) -> bytes:
    return log[:place] + bytes([log[place] ^ 1]) + log[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda log: _flipped(log, 9), lambda log: _flipped(log, 32 + 24 + 100), lambda log: _flipped(log, 32 + 9)],
    ids=["its header", "a page", "a salt"],
)
def test_a_damaged_log_beside_a_ledger_is_refused(tmp_path: Path, damage: object) -> None:
    path, folder = tmp_path / "ledger.db", tmp_path / "copy"
    ledger = Ledger(path)
    for _ in range(3):
        assert ledger.reserve("a", 60, 1_000, None)
        ledger.pay("a", 60, 50)
    folder.mkdir()
    for name in ("ledger.db", "ledger.db-wal"):  # as a run leaves them that was killed here
        (folder / name).write_bytes((tmp_path / name).read_bytes())
    ledger.close()
    log = folder / "ledger.db-wal"
    whole = log.read_bytes()
    log.write_bytes(whole[:-100])  # the last page was not written whole
    assert damage_of_log(folder / "ledger.db") == ""
    log.write_bytes(damage(whole))  # type: ignore[operator]
    with pytest.raises(StorageError, match=r"its log \(-wal\) is damaged.*Look up what was spent"):
        Ledger(folder / "ledger.db")
    log.write_bytes(whole)
    restored = Ledger(folder / "ledger.db")
    assert restored.spent("a") == 150
    restored.close()
