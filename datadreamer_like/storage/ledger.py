"""The ledger: what is spent and what is reserved, in one SQLite file that a kill at any moment leaves right.

A request's worst case is reserved before it is sent, and replaced by its cost when the answer is there. What a killed
process had reserved counts as spent, since its requests may have been answered. No clock is read.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

from filelock import FileLock

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, StorageError

from .database import FileKind, connected, explained, parent_of, prepare
from .folders import is_locked, locked
from .wal import damage_of_log

LEDGER_FORMAT = 1
LEDGER_NAME = "ledger.db"

logger = logging.getLogger("datadreamer_like")

_NANO = 10**9
_MOST_DOLLARS = 10**9
_SPENT = ""  # the holder of what is spent
_BATCH = "batch-"  # what holders that are not processes begin with
_LEDGER = FileKind(
    application_id=0x64646C6C,  # "ddll" read as a number
    format=LEDGER_FORMAT,
    tables=(
        "CREATE TABLE entries (holder TEXT NOT NULL, account TEXT NOT NULL, nanodollars INTEGER NOT NULL, "
        "checksum INTEGER NOT NULL, PRIMARY KEY (holder, account)) WITHOUT ROWID",
    ),
    kept="What was paid for is kept",
    if_damaged=(
        "The ledger is damaged, so it is not known how much of the budget is spent, and nothing is sent. Look up what "
        "was spent at the provider; then move this file away, and give the rest as the budget: counting starts again."
    ),
)


class Ledger:
    """Money by account, in dollars of 10⁻⁹, for threads and processes that share the file; `":memory:"` for none.

    Raises:
        StorageError: The file is damaged, or cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._lock = threading.Lock()
        self._holder = "this process"
        self._presence: FileLock | None = None
        with explained(self.path, "opened", _LEDGER):
            if self.path != ":memory:":
                parent_of(self.path)
                self._create()
                if why := damage_of_log(Path(self.path)):
                    raise self._damaged(why)
                self._holder = f"{Path(self.path).name}-{os.getpid()}-{uuid.uuid4().hex[:8]}.lock"
                self._presence = FileLock(self._file_of(self._holder), thread_local=False)
                self._presence.acquire()
            self._connection = connected(self.path)
        try:
            with explained(self.path, "opened", _LEDGER):
                prepare(self._connection, self.path, _LEDGER)
                if self._connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                    raise self._damaged("its pages do not fit together")
            self.count_dead()
        except BaseException:
            self.close()
            raise

    def reserve(
        self, account: str, amount: int, most: int | None, most_of_all: int | None, holder: str | None = None
    ) -> bool:
        """Reserves an amount, unless this account would pass `most`, or all together `most_of_all`.

        It is reserved until this process ends. If a `holder` is named, "batch-...", it is reserved once, until it is
        paid, and until then counts as spent.
        """
        with self._lock, self._writing():
            rows = self._rows()
            if (holder, account) in rows:
                return True
            own = sum(value for (_, of), value in rows.items() if of == account)
            if most is not None and own + amount > most:
                return False
            if most_of_all is not None and sum(rows.values()) + amount > most_of_all:
                return False
            of_process = rows.get((self._holder, account), 0)
            self._put(holder or self._holder, account, amount if holder else of_process + amount)
            return True

    def pay(self, account: str, reserved: int, cost: int, holder: str | None = None) -> None:
        """Replaces what was reserved by what it cost; of a `holder` that is all that it has, and nothing if paid."""
        with self._lock, self._writing():
            rows = self._rows()
            held = rows.get((holder or self._holder, account), 0)
            if held < reserved or (holder and not held):  # or another process counted this one's as spent, as if dead
                return
            self._put(holder or self._holder, account, 0 if holder else held - reserved)
            self._put(_SPENT, account, rows.get((_SPENT, account), 0) + cost)

    def spent(self, account: str | None = None) -> int:
        """Returns what is spent, or reserved for batches, of one account or of all."""
        return self._sum(account, reserved=False)

    def reserved(self, account: str | None = None) -> int:
        """Returns what is reserved by living processes, of one account or of all."""
        self.count_dead()
        return self._sum(account, reserved=True)

    def count_dead(self) -> None:
        """Counts what killed processes had reserved as spent."""
        with self._lock, self._writing():
            rows = self._rows()
            for (holder, account), held in list(rows.items()):
                if _is_spent(holder) or holder == self._holder or is_locked(self._file_of(holder)):
                    continue
                rows[_SPENT, account] = rows.get((_SPENT, account), 0) + held
                self._put(_SPENT, account, rows[_SPENT, account])
                self._put(holder, account, 0)
                self._file_of(holder).unlink(missing_ok=True)
                text = "%s were reserved by a run that was killed, and count as spent: it may have been billed for them"
                logger.info(text, in_dollars(held))

    def close(self) -> None:
        """Closes the file."""
        if hasattr(self, "_connection"):
            self._connection.close()
        if self._presence is not None:
            self._file_of(self._holder).unlink(missing_ok=True)
            self._presence.release()
            self._presence = None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with explained(self.path, "written", _LEDGER), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield

    def _create(self) -> None:
        # Complete or absent: an empty file is a damaged one, not a ledger without spending.
        path = Path(self.path)
        if path.exists():
            if path.stat().st_size == 0:
                raise self._damaged("it is empty")
            return
        with locked(path.with_name(f"{path.name}.lock"), "Opening the ledger"):
            if path.exists():
                return
            draft = path.with_name(f".{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
            connection = connected(str(draft))
            prepare(connection, self.path, _LEDGER)
            connection.close()  # merges the log into the file
            os.replace(draft, path)

    def _file_of(self, holder: str) -> Path:
        return Path(self.path).with_name(holder)

    def _sum(self, account: str | None, *, reserved: bool) -> int:
        with self._lock, explained(self.path, "read", _LEDGER):
            rows = self._rows()
        return sum(value for (who, of), value in rows.items() if _is_spent(who) != reserved and account in (None, of))

    def _rows(self) -> dict[tuple[str, str], int]:
        rows = {}
        for holder, account, amount, checksum in self._connection.execute("SELECT * FROM entries"):
            if checksum != _checksum(holder, account, amount) or amount < 0:
                raise self._damaged("a checksum differs")
            rows[holder, account] = amount
        return rows

    def _put(self, holder: str, account: str, amount: int) -> None:
        if not amount and holder != _SPENT:
            self._connection.execute("DELETE FROM entries WHERE holder = ? AND account = ?", (holder, account))
            return
        row = (holder, account, amount, _checksum(holder, account, amount))
        self._connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", row)

    def _damaged(self, why: str) -> StorageError:
        return StorageError(f"{self.path} cannot be used: {why}. {_LEDGER.if_damaged}")


def nanodollars(dollars: float) -> int:
    """Returns an amount in dollars of 10⁻⁹, rounded up."""
    return math.ceil(dollars * _NANO)


def in_dollars(amount: int) -> str:
    """Returns an amount for a message: "0.0031 USD"."""
    dollars = amount / _NANO
    if dollars == round(dollars, 2) or dollars >= 1_000:
        return f"{dollars:.2f} USD"
    return f"{Decimal(f'{dollars:.4g}'):f} USD"


def budget_of(given: object) -> int | None:
    """Returns a budget such as "5 USD" in dollars of 10⁻⁹; None for None.

    Raises:
        ArgumentTypeError: It is not a text.
        DefinitionError: It is not an amount in US dollars above 0.
    """
    if given is None:
        return None
    if not isinstance(given, str):
        raise ArgumentTypeError(f'budget is {given!r}; expected a text with the currency, such as "5 USD".')
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([^\W\d_]+|\W)?\s*", given)
    if found is None:
        raise DefinitionError(f'budget is {given!r}; expected an amount in US dollars, such as "5 USD" or "0.50 USD".')
    if found[2] is None or found[2].upper() != "USD":
        raise DefinitionError(
            f'budget is {given!r}; prices are in US dollars, so a budget is too. Write it as "5 USD".'
        )
    amount = math.floor(float(found[1]) * _NANO)
    if not 0 < amount <= _MOST_DOLLARS * _NANO:
        raise DefinitionError(f"budget is {given!r}; it must be above 0 and at most {_MOST_DOLLARS:,} USD.")
    return amount


def _is_spent(holder: str) -> bool:
    return holder == _SPENT or holder.startswith(_BATCH)


def _checksum(holder: str, account: str, amount: object) -> int:
    return zlib.crc32(f"{holder}\0{account}\0{amount}".encode("utf-8", "backslashreplace"))
