"""The manifest of a result: what it was made of, its card, its failed rows, and the checksums of its files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datadreamer_like.errors import NewerFormat, StorageError
from datadreamer_like.storage.folders import flush, flush_tree
from datadreamer_like.storage.seals import checksums, damaged_file, read_sealed, sealed

MANIFEST_FORMAT = 2
MANIFEST_NAME = "node.json"

_CUT_OFF_ROWS = "rows cut off"


@dataclass
class Manifest:
    """The contents of `node.json`.

    Attributes:
        name: The node's name when the result was made.
        fingerprint: Hash of everything that determines the result.
        parts: Fingerprint of each part, by name; a rerun reports which ones changed.
        columns: Column names of the result, for steps; so is the number of `rows`.
        pickled: Whether the table holds pickled Python objects.
        card: The node's card, without its parents.
        failed_rows: Indices of all rows with an error instead of a value, as ranges: "3,7-9".
        retriable_rows: Number of failed rows that may succeed if they are requested again.
        failures: Errors by row index, for the first thousand of them.
        result: Further values of the node's class, to read without opening the result.
        remade: Digest of the content once another one has replaced a result of the same fingerprint.
        files: Checksum of each other file of the result.
    """

    name: str
    class_name: str
    fingerprint: str
    parts: dict[str, str]
    format: int = MANIFEST_FORMAT
    columns: list[str] | None = None
    rows: int | None = None
    pickled: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    failed_rows: str = ""
    retriable_rows: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    remade: str = ""
    files: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[int]:
        """Indices of all rows with an error instead of a value, in order."""
        return _indices(self.failed_rows)

    @property
    def cut_off(self) -> list[int]:
        """Indices of all rows whose answer the limit of tokens cut off, and which keep it, in order."""
        return _indices(self.result.get(_CUT_OFF_ROWS, ""))

    def set_cut_off(self, indices: Iterable[int]) -> None:
        """Notes the rows of `cut_off`, if there are any: older versions of this package read the manifest too."""
        if ranges := row_ranges(indices):
            self.result[_CUT_OFF_ROWS] = ranges

    def complete(self, folder: Path) -> None:
        """Makes the folder a result: flushes its files to disk, and then writes this manifest into it atomically."""
        self.files = checksums(folder, but=(MANIFEST_NAME,))
        flush_tree(folder)
        draft = folder / f".{MANIFEST_NAME}"
        # The replacement for a lone surrogate, such as \ud800, is how JSON spells it.
        draft.write_bytes(sealed(asdict(self)).encode("utf-8", "backslashreplace"))
        flush(draft)
        os.replace(draft, folder / MANIFEST_NAME)
        flush(folder, folder.parent)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Reads the manifest of a result's folder; None if there is none.

        Raises:
            NewerFormat: A newer version of this package wrote it.
            StorageError: It is damaged.
        """
        path = folder / MANIFEST_NAME
        try:
            data = read_sealed(path)  # first, since a damaged format is no newer one
        except FileNotFoundError:
            return None
        NewerFormat.check(folder, data.get("format"), MANIFEST_FORMAT)
        try:
            return cls(**data)
        except TypeError as error:
            raise StorageError(f"{path} is damaged ({error})") from error

    def damage(self, folder: Path, *, seal: bool = True) -> str | None:
        """Returns which file of the result is damaged, as text for a message; None if all are whole."""
        return damaged_file(folder, self.files, seal=seal)

    def difference(self, parts: Mapping[str, str]) -> str:
        """Describes the differences between this result's fingerprint and a new one."""
        changed = []
        for name in {**self.parts, **parts}:
            if self.parts.get(name) != parts.get(name):
                verb = "was added" if name not in self.parts else "was removed" if name not in parts else "changed"
                changed.append(f"{name} {verb}")
        return ", ".join(changed) or "it was made by another version"


def row_ranges(indices: Iterable[int]) -> str:
    """Returns row indices as ranges: "3,7-9"."""
    ranges: list[list[int]] = []
    for index in sorted(set(indices)):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _indices(ranges: str) -> list[int]:
    parts = [part.split("-") for part in ranges.split(",") if part]
    return [index for part in parts for index in range(int(part[0]), int(part[-1]) + 1)]
