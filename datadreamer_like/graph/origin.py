"""The origin of rows: which rows of which nodes each row came from.

An `Origin` has a link for each parent and role, which maps each row to positions in the parent. Nothing is stored if
these are the same positions; otherwise ranges, and arrays, in files of the smallest integer type.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from .node import Node

INPUT = "input"


@dataclass(frozen=True)
class Every:
    """The origin of rows that all come from the same rows: those of a batch, or the examples in every prompt."""

    rows: range | np.ndarray[Any, Any]


@dataclass(frozen=True)
class Several:
    """The origin of rows that each come from any number of rows: `ends` are the ends of each row's part of `rows`."""

    ends: np.ndarray[Any, Any]
    rows: np.ndarray[Any, Any]

    @classmethod
    def of(cls, lists: Iterable[Sequence[int] | None]) -> Several | Every:
        """Returns the origin of rows with a list of positions each."""
        taken = [list(rows) if rows is not None else [] for rows in lists]
        if taken and all(rows == taken[0] for rows in taken):
            return Every(np.array(taken[0], dtype=np.int64))
        ends = np.cumsum([len(rows) for rows in taken], dtype=np.int64)
        return cls(ends, np.array([row for rows in taken for row in rows], dtype=np.int64))


Piece = range | np.ndarray[Any, Any] | Every | Several
"""The origin of consecutive rows; -1 in an array for a row from none."""


RowsFrom = range | Every | Sequence[int | None] | Sequence[Sequence[int]] | np.ndarray[Any, Any]


@dataclass(frozen=True)
class From:
    """One origin of rows, as stated by a step.

    Attributes:
        source: Name of an input, a column, or a node.
        rows: For each row the position of its source row (None for no row), or a list of positions;
            `Every(positions)` where all rows came from the same positions. By default the row at the same position.
        role: The role of the source rows: `input`, `example`, `document` or another word.
    """

    source: Any
    rows: RowsFrom | None = None
    role: str = INPUT


class Traced:
    """Rows, or a batch of them, with their origin. Returned by `run`, or yielded as a batch.

    Args:
        value: The rows, in any form that `run` may return.
        *sources: Their origins.

    Example:
        >>> def batches(self):  # in a step with an input "texts"; keeps every second row
        ...     texts = list(self.inputs["texts"])
        ...     yield Traced({"text": texts[::2]}, From("texts", rows=range(0, len(texts), 2)))
    """

    def __init__(self, value: Any, *sources: From) -> None:
        self.value = value
        self.sources = sources


@dataclass
class Positions:
    """For each row, the positions of its source rows in the parent."""

    starts: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)

    def add(self, start: int, piece: Piece) -> None:
        """Adds the origin of the rows from `start`."""
        last = self.pieces[-1] if self.pieces else None
        if isinstance(piece, range) and isinstance(last, range) and piece.step == last.step:
            place = last.start + (start - self.starts[-1]) * last.step
            if piece and place == piece.start == last.stop:
                self.pieces[-1] = range(last.start, piece.stop, last.step)
                return
        if isinstance(piece, Every) and isinstance(last, Every) and np.array_equal(piece.rows, last.rows):
            return
        self.starts.append(start)
        self.pieces.append(_as_range(piece))

    def of(self, row: int) -> list[int]:
        """Returns the positions of a row's source rows in the parent."""
        index = bisect_right(self.starts, row) - 1
        if index < 0:
            return []
        piece, place = self.pieces[index], row - self.starts[index]
        if isinstance(piece, Every):
            found = piece.rows
        elif isinstance(piece, Several):
            found = piece.rows[piece.ends[place - 1] if place else 0 : piece.ends[place]]
        else:
            found = piece[place : place + 1]
        return [int(position) for position in found if position >= 0]

    def unless_same(self, num_rows: int) -> Positions | None:
        """Returns the positions; None if each row comes from the one at the same position."""
        first = self.pieces[0]
        return None if len(self.pieces) == 1 and isinstance(first, range) and first == range(num_rows) else self

    def save(self, folder: Path, name: str) -> list[dict[str, Any]]:
        """Writes the arrays into a folder, and returns their description for `load`."""
        described: list[dict[str, Any]] = []
        for start, piece in self._joined():
            entry: dict[str, Any] = {"start": start, "every": isinstance(piece, Every)}
            rows = piece.rows if isinstance(piece, Every | Several) else piece
            if isinstance(rows, range):
                entry["range"] = [rows.start, rows.stop, rows.step]
            else:
                entry["file"] = f"{name}-{len(described)}.npy"
                np.save(folder / entry["file"], _fewest_bytes(rows))
            if isinstance(piece, Several):
                entry["ends"] = f"{name}-{len(described)}-ends.npy"
                np.save(folder / entry["ends"], _fewest_bytes(piece.ends))
            described.append(entry)
        return described

    @classmethod
    def load(cls, folder: Path, described: list[dict[str, Any]]) -> Positions:
        """Opens saved positions, memory-mapped."""
        positions = cls()
        for entry in described:
            piece: Any = range(*entry["range"]) if "range" in entry else _opened(folder / entry["file"])
            if "ends" in entry:
                piece = Several(_opened(folder / entry["ends"]), piece)
            positions.starts.append(entry["start"])
            positions.pieces.append(Every(piece) if entry["every"] else piece)
        return positions

    def _joined(self) -> Iterator[tuple[int, Piece]]:
        """Yields start and piece, with adjacent pieces of one kind joined, to store them in few files."""
        for kind, group in groupby(zip(self.starts, self.pieces, strict=True), key=lambda part: _kind(part[1])):
            held: list[tuple[int, Any]] = list(group)
            first, last = held[0][0], held[-1]
            if kind is Every or len(held) == 1:
                yield from held
            elif kind is Several:
                before = np.cumsum([0, *(len(piece.rows) for _, piece in held[:-1])])
                ends = [piece.ends.astype(np.int64) + taken for (_, piece), taken in zip(held, before, strict=True)]
                yield first, Several(np.concatenate(ends), np.concatenate([piece.rows for _, piece in held]))
            else:
                rows = np.full(last[0] + len(last[1]) - first, -1)  # those after the end of a piece come from none
                for start, piece in held:
                    rows[start - first : start - first + len(piece)] = piece
                yield first, rows


@dataclass(frozen=True)
class Link:
    """One parent of some rows; None if it was made inside a step whose result this run loaded.

    `rows` are the source rows of each row; None for those at the same positions. Their `role` is `input`, `example`,
    `document`. `is_followed` is whether other links lead to where the rows of a parent inside a step came from.
    """

    parent: Node | None
    rows: Positions | None = None
    role: str = INPUT
    name: str = ""
    class_name: str = ""
    is_followed: bool = False

    def of(self, row: int) -> list[int]:
        """Returns the positions of a row's source rows in the parent."""
        return [row] if self.rows is None else self.rows.of(row)


Stated = Mapping[tuple[Node, str], Piece | None]
"""The origin of one batch, by parent and role; None for rows at the same positions."""


@dataclass
class Origin:
    """The links of some rows; None if their origin is unknown.

    `rows` is the number of rows that the links cover; None for all. A pass over lazy rows extends them.
    """

    links: tuple[Link, ...] | None = ()
    rows: int | None = None

    @classmethod
    def learned(cls) -> Origin:
        """Returns an origin of lazy rows that is learned as they are read."""
        return cls(None, 0)

    @classmethod
    def same(cls, *parents: Node) -> Origin:
        """Returns the origin of rows that come from the parents' rows at the same positions."""
        return cls(tuple(Link(parent) for parent in dict.fromkeys(parents)))

    @classmethod
    def at(cls, parent: Node | None, piece: Piece) -> Origin:
        """Returns the origin of rows from given positions of one parent."""
        return cls((Link(parent, Positions([0], [_small(piece)])),)) if parent is not None else cls()

    def covers(self, row: int) -> bool:
        """Returns whether a row's origin is known yet."""
        return self.rows is None or row < self.rows

    def save(self, folder: Path, prefix: str = "origin") -> list[dict[str, Any]] | None:
        """Writes the links into a folder, and returns their description for `load`."""
        if self.links is None:
            return None
        described = []
        for index, link in enumerate(self.links):
            entry: dict[str, Any] = {"role": link.role}
            if link.parent is not None:
                entry |= {"parent": link.parent.fingerprint, "name": link.parent.name}
                entry["class"] = type(link.parent).__name__
            if link.is_followed:
                entry["followed"] = True
            if link.rows is not None:
                entry["rows"] = link.rows.save(folder, f"{prefix}-{index}")
            described.append(entry)
        return described

    @classmethod
    def load(cls, folder: Path, described: list[dict[str, Any]] | None, nodes: Iterable[Node]) -> Origin:
        """Opens an origin from what `save` returned; parents are found among `nodes` by their fingerprints."""
        if described is None:
            return cls(None)
        known = {node.fingerprint: node for node in nodes}
        links = []
        for entry in described:
            rows = Positions.load(folder, entry["rows"]) if "rows" in entry else None
            parent = known.get(entry.get("parent", ""))
            names = entry.get("name", ""), entry.get("class", "")
            links.append(Link(parent, rows, entry["role"], *names, entry.get("followed", False)))
        return cls(tuple(links))


class Recorder:
    """Learns the origin of rows during a pass: extends it batch by batch, unless an earlier pass has read further."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._rows = 0
        self._positions: dict[tuple[Node, str], Positions] = {}
        self._unknown = False

    def add(self, num_rows: int, stated: Stated | None) -> None:
        """Records the origin of the next rows; None if it is unknown."""
        if not num_rows:
            return
        same = range(self._rows, self._rows + num_rows)
        known: Stated = {} if stated is None else stated
        self._unknown = self._unknown or stated is None
        for key in {**self._positions, **known}:
            piece = known.get(key, range(0))
            self._positions.setdefault(key, Positions()).add(self._rows, same if piece is None else piece)
        self._rows += num_rows
        if self._origin.rows is not None and self._rows > self._origin.rows:
            links = (
                Link(parent, rows.unless_same(self._rows), role) for (parent, role), rows in self._positions.items()
            )
            self._origin.links = None if self._unknown else tuple(links)
            self._origin.rows = self._rows


def _small(piece: Piece) -> Piece:
    """Returns a piece in compact form: an array as a range or in the smallest integer type."""
    piece = _as_range(piece)
    return _fewest_bytes(piece) if isinstance(piece, np.ndarray) else piece


def _as_range(piece: Piece) -> Piece:
    """Returns an array of consecutive positions as a range, and any other piece as it is."""
    if not isinstance(piece, np.ndarray) or not len(piece):
        return piece
    first = piece[0]
    if first < 0 or piece[-1] - first != len(piece) - 1 or not (np.diff(piece) == 1).all():
        return piece
    return range(int(first), int(first) + len(piece))


def _fewest_bytes(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    most = int(rows.max(initial=0))
    # A type for -most - 1 is signed, and holds -1 and `most`.
    return rows.astype(np.min_scalar_type(most if rows.min(initial=0) >= 0 else -most - 1), copy=False)


def _opened(file: Path) -> np.ndarray[Any, Any]:
    return np.load(file, mmap_mode="r")  # type: ignore[no-any-return]


def _kind(piece: Piece) -> type:
    return type(piece) if isinstance(piece, Every | Several) else range
