"""The classes of a classifier, found in the training rows."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from datadreamer_like.errors import DataError, LabelError, did_you_mean
from datadreamer_like.graph.output import Column
from datadreamer_like.storage import values

logger = logging.getLogger("datadreamer_like")

VECTORS = (
    "If each position stands for a class, convert the rows with step.map: names[vector.index(1)] where each row has "
    "one class, else [names[i] for i, has in enumerate(vector) if has]."
)
"""What to do with rows of zeros and ones, for messages."""


@dataclass(frozen=True)
class LabelSet:
    """Classes in the order of a model's logits; with `multi`, each row has a list of labels.

    Numbers and booleans are named as Python prints them.
    """

    names: tuple[str, ...]
    multi: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def label2id(self) -> dict[str, int]:
        """The classes and their positions."""
        return {name: position for position, name in enumerate(self.names)}

    def targets(
        self, labels: Sequence[Any], where: str, start: int = 0, naming: Sequence[str] | None = None
    ) -> np.ndarray[Any, Any]:
        """Returns the targets of rows: positions [rows], int64, or 0 and 1 [rows, classes], fp32, for lists of labels.

        The target of None is -100. `naming` has the names of a column's integer labels; `where`, the argument's name,
        and `start`, the number of the first row, are for messages. A label outside the set raises `LabelError`.
        """
        from datadreamer_like.distillation.losses import IGNORED_LABEL  # imports torch

        shape = (len(labels), len(self)) if self.multi else len(labels)
        targets = np.full(shape, IGNORED_LABEL, dtype=np.float32 if self.multi else np.int64)
        for index, value in enumerate(labels):
            if value is not None:
                found = self._positions(value, where, start + index, naming)
                targets[index] = np.isin(np.arange(len(self)), found) if self.multi else found[0]
        return targets

    def _positions(self, value: Any, where: str, row: int, naming: Sequence[str] | None) -> list[int]:
        if isinstance(value, list | tuple) != self.multi:
            wanted = "a list of labels" if self.multi else "one label"
            raise LabelError(f"{where} has {value!r} in row {row}, where the training rows have {wanted}.")
        found = []
        for label in _several(value, where, row, naming) if self.multi else (value,):
            name = label_name(label, where, row, naming)
            if name not in self.label2id:
                listed = ", ".join([*self.names[:20], *(["..."] if len(self) > 20 else [])])
                raise LabelError(
                    f'{where} has the label "{name}" in row {row}, which is not one of the {len(self)} labels of the '
                    f"training rows: {listed}.{did_you_mean(name, self.names)} Correct the label, filter the row out, "
                    "or add training rows with this label."
                )
            found.append(self.label2id[name])
        return found


def class_names(column: Column) -> list[str] | None:
    """Returns the class names of a `datasets.ClassLabel` column; None for other columns."""
    return values.class_names(column.rows.schema.field(0), in_lists=True) or None


def find_labels(column: Column, where: str, *, optional: bool = False) -> LabelSet:
    """Collects the classes of the training rows, sorted: numbers by value, names alphabetically.

    If `optional`, labels may be None; if all are, the set is empty.

    Raises:
        LabelError: A value cannot be a label, labels have mixed types, a list repeats a number, or all rows have the
            same.
        DataError: A value is missing.
    """
    naming = class_names(column)
    kinds: dict[type, int] = {}
    found: set[Any] = set()
    multi: bool | None = None
    first: set[Any] | None = None
    constant = True
    for row, value in enumerate(column.values()):
        if value is None:
            if optional:
                continue
            raise DataError(
                f"{where} is None in row {row}, and this objective learns from labels alone. Filter such rows out "
                "first, or learn from a teacher: objective=SoftTargets(teacher)."
            )
        is_list = isinstance(value, list | tuple)
        if multi not in (None, is_list):
            raise LabelError(f"{where} has one label in some rows and a list of labels in others (row {row}).")
        multi = is_list
        for label in _several(value, where, row, naming) if is_list else (value,):
            label_name(label, where, row, naming)
            kinds.setdefault(type(label), row)
            found.add(label)
        if constant and is_list:
            first = {*value} if first is None else first
            constant = first == {*value}
    if len(kinds) > 1:
        spoken = ", ".join(f"{kind.__name__} (row {row})" for kind, row in kinds.items())
        raise LabelError(f"{where} mixes labels of different types: {spoken}. Make them of one type with step.map.")
    warn_of_spellings(found, where)
    names = tuple(naming or (str(label) for label in sorted(found)))
    if optional:
        return LabelSet(names if found else (), bool(multi))
    if not found:
        raise LabelError(f"{where} has an empty list of labels in every row, so there is nothing to learn.")
    if len(found) < 2 and not multi:
        raise LabelError(
            f'{where} has only one label, "{label_name(found.pop(), where, 0, naming)}", so there is nothing to learn. '
            "It needs two."
        )
    if multi and constant:
        listed = ", ".join(sorted(label_name(label, where, 0, naming) for label in found))
        help = f" {VECTORS}" if naming is None and found == {0, 1} else ""
        raise LabelError(f"{where} has the same labels in every row ({listed}), so there is nothing to learn.{help}")
    return LabelSet(names, bool(multi))


def warn_of_spellings(labels: Iterable[object], where: str) -> None:
    """Warns of labels that differ only in upper case, blanks or Unicode form: each is a class of its own."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        if isinstance(label, str):
            plain = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
            groups.setdefault(plain, []).append(label)
    alike = [" and ".join(map(repr, sorted(group))) for group in groups.values() if len(group) > 1]
    if alike:
        logger.warning(
            "%s has labels that differ only in upper case or blanks, and are classes of their own: %s. If they are "
            "one, make them so with step.map.", where, "; ".join([*alike[:5], *(["..."] if len(alike) > 5 else [])]),
        )  # fmt: skip


def _several(labels: Sequence[Any], where: str, row: int, naming: Sequence[str] | None) -> Sequence[Any]:
    """Returns a row's list of labels, and refuses zeros and ones that stand for the classes in their order."""
    if naming is None and labels and isinstance(labels[0], int) and len({*labels}) < len(labels):
        raise LabelError(
            f"{where} repeats a label in row {row}: {labels!r:.100}. A row lists the labels that it has. {VECTORS}"
        )
    return labels


def label_name(label: Any, where: str, row: int, naming: Sequence[str] | None = None) -> str:
    """Returns a label's name: the one in `naming` for an integer of a class label column, else the label as a text."""
    if not isinstance(label, str | int):
        raise LabelError(
            f"{where} has {label!r} in row {row}, of type {type(label).__name__}; a label must be a text, a whole "
            "number, True or False."
        )
    if naming is not None and isinstance(label, int) and not isinstance(label, bool):
        if not 0 <= label < len(naming):
            raise LabelError(f"{where} has {label} in row {row}; its {len(naming)} classes are numbered from 0.")
        return naming[label]
    return str(label)
