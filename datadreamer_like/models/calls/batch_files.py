"""Batches on disk: their lines, their ids at the provider and their results, next to the answers that they fill.

Files are complete or absent. A batch is locked by the process that works on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from filelock import FileLock, Timeout

from datadreamer_like.errors import NewerFormat, StorageError
from datadreamer_like.storage.folders import explained, flush, write_file
from datadreamer_like.storage.seals import checksum, read_sealed, sealed

BATCH_FORMAT = 1

logger = logging.getLogger("datadreamer_like")


class Row(NamedTuple):
    """One prompt of a batch: the key of its answer, its number of lines, its worst case in dollars of 10⁻⁹."""

    key: bytes
    lines: int
    worst: int


@dataclass
class Batch:
    """One batch that this process works on.

    Attributes:
        label: Its name here, which is in the name of the uploaded file and in the custom ids of its lines.
        rows: The prompts by the keys of their answers.
        state: What is written: "begun" and "ids" as in `sent_once`, and "sums", the checksums of the other files.
        waiting: Keys of rows that need more replies than this batch has; its results are kept until they have them.
    """

    folder: Path
    label: str
    rows: dict[bytes, Row]
    state: dict[str, Any]
    lock: FileLock
    waiting: set[bytes] = field(default_factory=set)

    @property
    def id(self) -> str | None:
        """The batch's id at the provider; None before it is submitted."""
        found: str | None = self.state["ids"].get("batch")
        return found

    @property
    def state_file(self) -> Path:
        """The file with its state and rows."""
        return _state_file(self.folder, self.label)

    @property
    def lines_file(self) -> Path:
        """The file that is submitted."""
        return self.folder / f"{self.label}.jsonl"

    @property
    def results_file(self) -> Path:
        """The results, once they are here."""
        return self.folder / f"{self.label}.results"

    @property
    def lines(self) -> int:
        """The number of its lines."""
        return sum(row.lines for row in self.rows.values())

    @property
    def worst(self) -> int:
        """The most that it costs, in dollars of 10⁻⁹."""
        return sum(row.worst for row in self.rows.values())

    def save(self) -> None:
        """Writes the state."""
        rows = [[row.key.hex(), row.lines, row.worst] for row in self.rows.values()]
        state = {"format": BATCH_FORMAT, "label": self.label, **self.state, "rows": rows}
        with explained("The batch", self.folder):
            write_file(self.state_file, sealed(state))

    def place_of(self, custom_id: object) -> tuple[bytes, int] | None:
        """Returns the key and the index in a custom id; None if no line of this batch has it."""
        parts = str(custom_id).split("-")
        with contextlib.suppress(ValueError):
            key, index = bytes.fromhex(parts[0]), int(parts[1])
            if parts[2:] == [self.label] and key in self.rows and 0 <= index < self.rows[key].lines:
                return key, index
        return None

    def has_results(self) -> bool:
        """Returns whether the results are here and not damaged."""
        return self._is_whole(self.results_file)

    def keep_results(self, download: Callable[[BinaryIO], None]) -> None:
        """Saves the results, unless they are here."""
        if not self.has_results():
            with explained("The results of the batch", self.folder), _complete(self.results_file) as file:
                download(file)
            self._seal(self.results_file)

    def check_lines(self) -> None:
        """Raises `StorageError` if the lines that are to be submitted are damaged."""
        if not self._is_whole(self.lines_file):
            raise StorageError(
                f"{self.lines_file} is damaged, so it is not submitted. Part of its batch may be at the provider: look "
                f"for a file or batch named {self.label} there; then remove {self.state_file}, and its prompts are "
                "sent again."
            )

    def _is_whole(self, file: Path) -> bool:
        return file.exists() and self.state["sums"].get(file.name) == checksum(file)

    def _seal(self, file: Path) -> None:
        self.state["sums"][file.name] = checksum(file)
        self.save()

    def results(self) -> Iterator[Any]:
        """Yields the lines of the results, parsed; those that are not JSON are left out."""
        yield from parsed_lines(self.results_file)

    def first_line(self) -> dict[str, Any]:
        """Returns the first of its lines; nothing if they are damaged."""
        if not self._is_whole(self.lines_file):
            return {}
        with self.lines_file.open("rb") as file:
            found: dict[str, Any] = json.loads(file.readline())
        return found

    def remove(self) -> None:
        """Removes it from the disk, and releases it."""
        self.state_file.unlink(missing_ok=True)
        _remove_rest(self.folder, self.label)
        self.release()

    def release(self) -> None:
        """Lets other processes work on it."""
        self.lock.release()


def parsed_lines(path: Path) -> Iterator[Any]:
    """Yields the lines of a file, parsed; those that are not JSON are left out."""
    with path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def lines_cut(path: Path) -> list[bytes]:
    """Returns hashes of the lines of a file that begin as JSON objects and are not whole."""
    found = []
    with path.open("rb") as file:
        for line in file:
            try:
                json.loads(line)
            except ValueError:
                if line.lstrip().startswith(b"{"):
                    found.append(hashlib.blake2b(line, digest_size=16).digest())
    return found


def make_batch(folder: Path, label: str, lines: Iterable[tuple[Row, list[bytes]]]) -> Batch | None:
    """Writes a batch, which is not submitted yet, given the lines of each row; None if there is no row."""
    with explained("The batch", folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = _locked(folder, label)
    assert lock is not None
    batch = Batch(folder, label, {}, {"begun": [], "ids": {}, "sums": {}}, lock)
    try:
        with explained("The batch", folder), _complete(batch.lines_file) as file:
            for row, of_row in lines:
                batch.rows[row.key] = row
                file.writelines(of_row)
        if batch.rows:
            batch._seal(batch.lines_file)
            return batch
    except BaseException:
        batch.remove()
        raise
    batch.remove()
    return None


def batches_in(folder: Path) -> dict[str, frozenset[bytes]]:
    """Returns the keys of the rows of each batch on disk, by label; raises `StorageError` for a damaged one.

    What a run has left that was killed before it had written a batch is removed.
    """
    states = {file.stem: _read(file) for file in sorted(folder.glob("*.json"))}
    labels = {file.name.lstrip(".").partition(".")[0] for file in folder.glob("*")}
    for label in labels - states.keys():
        lock = _locked(folder, label)
        if lock is not None:
            if not is_batch(folder, label):
                _remove_rest(folder, label)
            lock.release()
    return {
        label: frozenset(bytes.fromhex(row[0]) for row in state["rows"])
        for label, state in states.items()
        if state is not None
    }


def is_batch(folder: Path, label: str) -> bool:
    """Returns whether a batch is on disk."""
    return _state_file(folder, label).exists()


def take_batch(folder: Path, label: str) -> Batch | None:
    """Locks a batch; None if another process works on it, or if it is gone, which `is_batch` distinguishes."""
    lock = _locked(folder, label)
    if lock is None:
        return None
    state = _read(_state_file(folder, label))
    if state is None:
        _remove_rest(folder, label)
        lock.release()
        return None
    rows = [Row(bytes.fromhex(key), lines, worst) for key, lines, worst in state["rows"]]
    kept = {name: state[name] for name in ("begun", "ids", "sums")}
    return Batch(folder, label, {row.key: row for row in rows}, kept, lock)


def custom_id(key: bytes, index: int, label: str) -> str:
    """Returns the id of a line: letters, digits and "-", at most 64, as all providers take them."""
    return f"{key.hex()}-{index}-{label}"


def new_label() -> str:
    """Returns a name that no other batch has."""
    return uuid.uuid4().hex[:16]


def _state_file(folder: Path, label: str) -> Path:
    return folder / f"{label}.json"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        state = read_sealed(file)
    except FileNotFoundError:
        return None
    except StorageError as error:
        raise StorageError(
            f"{file} is damaged. It has the id of a batch that may have been paid for, so nothing is sent. Look the "
            "batch up at the provider; then remove this file, and its prompts are sent again."
        ) from error
    NewerFormat.check(file, state.get("format"), BATCH_FORMAT)
    return state


def _remove_rest(folder: Path, label: str) -> None:
    """Removes all files of a batch but its state."""
    for file in (*folder.glob(f"{label}.*"), *folder.glob(f".{label}.*")):
        if file != _state_file(folder, label):
            file.unlink(missing_ok=True)


def _locked(folder: Path, label: str) -> FileLock | None:
    lock = FileLock(folder / f"{label}.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


@contextlib.contextmanager
def _complete(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that replaces `path` when the block ends without an error."""
    draft = path.with_name(f".{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with draft.open("wb") as file:
            yield file
        flush(draft)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
