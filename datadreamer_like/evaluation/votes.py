"""The votes of several labellers on the same rows: read from columns, and described in a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from datadreamer_like.errors import DataError, DefinitionError, EmptyDataset, LabelError, did_you_mean
from datadreamer_like.graph.output import Column
from datadreamer_like.report import Table, TableColumn

from .agreement import exact_interval
from .labels import class_names, label_name

Codes = np.ndarray[Any, np.dtype[np.int64]]
ABSTAINED = -1
"""The code of an abstention."""

_COLUMNS = (
    TableColumn("voter", "voter", align="left"),
    TableColumn("labels", "labels"),
    TableColumn("coverage", "coverage", "%", ".1f", 100),
    TableColumn("overlap", "overlap", "%", ".1f", 100),
    TableColumn("conflict", "conflict", "%", ".1f", 100),
)
_ON_GOLD = (
    TableColumn("gold", "gold rows", "", ",d"),
    TableColumn("accuracy", "accuracy", "%", ".1f", 100),
)
_LEARNED = TableColumn("learned", "learned accuracy", "%", ".1f", 100)
_NOTE = (
    "Coverage: rows with a vote. Overlap: rows where another voter votes too. Conflict: rows where another one votes "
    "for another label. All are shares of all rows."
)
_VOTE_HELP = "Read an LLM's answer into a label first, or map the column: other answers to None, an abstention."
_GOLD_NOTE = "Accuracy: of the votes on rows with a gold label, with an exact 95 % interval."


@dataclass(frozen=True, eq=False)
class Votes:
    """The votes of several labellers on the same rows.

    Attributes:
        voters: Their names.
        classes: The labels that they may vote for.
        codes: [rows, voters], the position of each vote among the classes; -1 for an abstention.
    """

    voters: tuple[str, ...]
    classes: tuple[str, ...]
    codes: Codes

    @classmethod
    def of(cls, votes: Mapping[str, Iterable[Any]], classes: Sequence[Any] | None = None, what: str = "votes") -> Votes:
        """Reads the votes of each voter, by name.

        A vote is a label (a text, a whole number, True or False), None for an abstention, or a mapping from label to
        probability, which is a vote for the likeliest label, and an abstention if there are several.

        Args:
            votes: The votes of each voter, in the order of the rows.
            classes: The labels; None for those that occur, sorted.
            what: What has the votes, for messages.

        Raises:
            EmptyDataset, DefinitionError: There are no voters or rows, or voters have different numbers of rows.
            LabelError: A vote is not a label, or not one of the classes.

        Example:
            >>> votes = Votes.of({"links": ["spam", None, "spam"], "length": ["spam", "fine", "fine"]})
            >>> votes.classes, votes.codes.tolist()
            (('fine', 'spam'), [[1, 1], [-1, 0], [1, 0]])
        """
        if not votes:
            raise DefinitionError(f"{what} has no voters. Pass a column of votes for each.")
        columns = {voter: _names(column, f'{what}: "{voter}"') for voter, column in votes.items()}
        sizes = {voter: len(names) for voter, names in columns.items()}
        if len(set(sizes.values())) > 1:
            raise DefinitionError(f"{what}: the voters have different numbers of rows: {sizes}. Pass one vote per row.")
        if not next(iter(sizes.values())):
            raise EmptyDataset(f"{what} has no rows.")
        if classes is None:
            given = tuple(
                sorted({name for names in columns.values() for name in names if name is not None}, key=_order)
            )
        else:
            given = tuple(str(name) for name in _names(classes, f"{what}: labels"))
            if len(set(given)) < len(given):
                raise DefinitionError(f"{what}: labels are {list(given)}; each may occur once.")
        for voter, names in columns.items():
            _check_names(names, given, f'{what}: "{voter}"', _VOTE_HELP)
        codes = np.stack([_positions(names, given) for names in columns.values()], axis=1)
        return cls(tuple(columns), given, codes)

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def counts(self) -> Codes:
        """The number of votes for each class [rows, classes]."""
        found = np.zeros((len(self), len(self.classes)), np.int64)
        for place in range(len(self.classes)):
            found[:, place] = (self.codes == place).sum(1)
        return found

    @property
    def shares(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The share of the votes of a row for each class [rows, classes]; 0 without votes."""
        found: np.ndarray[Any, np.dtype[np.float64]] = self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)
        return found

    @property
    def has_vote(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether a voter has voted [rows]."""
        found: np.ndarray[Any, np.dtype[np.bool_]] = (self.codes != ABSTAINED).any(1)
        return found

    def gold_codes(self, gold: Iterable[Any], what: str = "gold") -> Codes:
        """Returns the positions of gold labels among the classes [rows]; -1 for None, a row without one."""
        found = label_codes(gold, self.classes, what)
        if len(found) != len(self):
            raise DataError(
                f"{what} has {len(found):,} rows, and the votes {len(self):,}. Pass a label or None per row."
            )
        return found

    def summary(
        self,
        gold: Iterable[Any] | None = None,
        *,
        title: str = "",
        learned: Mapping[str, float] | None = None,
        result: tuple[str, Codes] | None = None,
    ) -> Table:
        """Describes each voter: its labels, coverage, overlaps, conflicts, and accuracy on `gold` labels.

        Args:
            gold: A label for each row, None where there is none.
            title: Of the table.
            learned: Accuracies that a label model has estimated, by voter; NaN for none.
            result: A name and the labels [rows] that were made of the votes, for a last row.
        """
        truth = None if gold is None else self.gold_codes(gold)
        voted = self.codes != ABSTAINED
        others = voted.sum(1, keepdims=True) - voted
        padded = self.counts if self.classes else np.zeros((len(self), 1), np.int64)  # nobody votes
        same = np.take_along_axis(padded, np.maximum(self.codes, 0), axis=1) - voted
        rows: list[dict[str, Any]] = []
        for place, voter in enumerate(self.voters):
            own = voted[:, place]
            shares = {
                "coverage": own,
                "overlap": own & (others[:, place] > 0),
                "conflict": own & (others[:, place] > same[:, place]),
            }
            row: dict[str, Any] = {"voter": voter, "labels": len({*self.codes[own, place].tolist()})}
            row |= {name: float(where.mean()) for name, where in shares.items()}
            row["learned"] = None if learned is None or np.isnan(learned[voter]) else learned[voter]
            rows.append(row | self._on_gold(self.codes[:, place], truth))
        if result is not None:
            name, codes = result
            row = {"voter": name, "labels": len({*codes[codes != ABSTAINED].tolist()})}
            rows.append(row | {"coverage": float((codes != ABSTAINED).mean())} | self._on_gold(codes, truth))
        columns = [*_COLUMNS, *(_ON_GOLD if truth is not None else ()), *([_LEARNED] if learned is not None else [])]
        return Table(columns, rows, title, [_NOTE, *([_GOLD_NOTE] if truth is not None else [])])

    def _on_gold(self, codes: Codes, truth: Codes | None) -> dict[str, Any]:
        if truth is None:
            return {}
        asked = (truth != ABSTAINED) & (codes != ABSTAINED)
        right = int((codes == truth)[asked].sum())
        return {"gold": int(asked.sum()), "accuracy": exact_interval(right, int(asked.sum())) if asked.any() else None}


def label_codes(gold: Iterable[Any], classes: Sequence[str], what: str) -> Codes:
    """Returns the positions of known labels among the classes [rows]; -1 for None, a row without one.

    Raises:
        EmptyDataset: No row has a label.
        LabelError: A label is not one of the classes.
    """
    names = _names(gold, what)
    _check_names(names, classes, what, "Correct it, or add it to the labels.")
    if not any(name is not None for name in names):
        raise EmptyDataset(f"{what} has no label in any row. Label some rows first.")
    return _positions(names, classes)


def _order(name: str) -> tuple[bool, int, str]:
    """Sorts whole numbers by value, before texts."""
    is_number = name.removeprefix("-").isdecimal()
    return not is_number, int(name) if is_number else 0, name


def _names(values: Iterable[Any], where: str) -> list[str | None]:
    """Returns the names of the labels of a voter."""
    naming = class_names(values) if isinstance(values, Column) else None
    known: dict[tuple[type, Any], str] = {}
    names: list[str | None] = []
    for row, value in enumerate(values):
        if isinstance(value, Mapping):
            names.append(_likeliest(value, where, row))
        elif value is None:
            names.append(None)
        elif isinstance(value, str | int):
            key = type(value), value
            if key not in known:
                known[key] = label_name(value, where, row, naming)
            names.append(known[key])
        else:
            names.append(label_name(value, where, row, naming))  # raises
    return names


def _likeliest(chances: Mapping[Any, Any], where: str, row: int) -> str | None:
    given = {str(name): chance for name, chance in chances.items() if chance is not None}
    if not all(isinstance(chance, int | float) and chance == chance for chance in given.values()):
        raise LabelError(f"{where} has {dict(chances)!r:.200} in row {row}; probabilities must be numbers.")
    most = max(given.values(), default=0.0)
    best = [name for name, chance in given.items() if chance == most]
    return best[0] if len(best) == 1 else None


def _positions(names: Sequence[str | None], classes: Sequence[str]) -> Codes:
    places = {name: place for place, name in enumerate(classes)}
    return np.array([ABSTAINED if name is None else places[name] for name in names], dtype=np.int64)


def _check_names(names: Sequence[str | None], classes: Sequence[str], where: str, help: str) -> None:
    known = {*classes, None}
    wrong = [row for row, name in enumerate(names) if name not in known]
    if not wrong:
        return
    name, row = str(names[wrong[0]]), wrong[0]
    more = f" ({len(wrong):,} such rows in all)" if len(wrong) > 1 else ""
    listed = ", ".join([*classes[:20], *(["..."] if len(classes) > 20 else [])])
    raise LabelError(
        f'{where} has "{name:.100}" in row {row}{more}, which is not one of the {len(classes)} labels: {listed}.'
        f"{did_you_mean(name, classes)} {help}"
    )
