"""The classes of a classifier, found in the training rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from datadreamer_like.errors import DataError, LabelError, did_you_mean
from datadreamer_like.graph.output import Column
from datadreamer_like.storage.values import class_names as names_of_classes


@dataclass(frozen=True)
class LabelSet:
    """Classes in the order of a model's logits.

    Attributes:
        names: Their names; numbers and booleans as Python prints them.
        multi: Whether each row has a list of labels.
    """

    names: tuple[str, ...]
    multi: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def positions(self, value: Any, where: str, row: int, naming: tuple[str, ...] | None = None) -> list[int]:
        """Returns the positions of a row's label or labels.

        Args:
            value: The label, or a list of labels for a multi-label model.
            where: Name of the argument, for the message.
            row: Number of the row, for the message.
            naming: Names of the column's integer labels.

        Raises:
            LabelError: A label is not in the set.
        """
        if isinstance(value, list | tuple) != self.multi:
            wanted = "a list of labels" if self.multi else "one label"
            raise LabelError(f"{where} has {value!r} in row {row}, where the training rows have {wanted}.")
        found = []
        for label in value if self.multi else (value,):
            name = label_name(label, where, row, naming)
            if name not in self._index:
                raise LabelError(
                    f'{where} has the label "{name}" in row {row}, which is not one of the {len(self)} labels of the '
                    f"training rows: {_listed(self.names)}.{did_you_mean(name, self.names)} Correct the label, filter "
                    "the row out, or add training rows with this label."
                )
            found.append(self._index[name])
        return found

    @property
    def _index(self) -> dict[str, int]:
        index: dict[str, int] | None = self.__dict__.get("_positions")
        if index is None:
            index = {name: position for position, name in enumerate(self.names)}
            object.__setattr__(self, "_positions", index)
        return index


def class_names(column: Column) -> tuple[str, ...] | None:
    """Returns the class names of a `datasets.ClassLabel` column; None for other columns."""
    names = names_of_classes(column.rows.schema.field(0), in_lists=True)
    return tuple(names) if names else None


def find_labels(
    values: Iterable[Any], where: str, naming: tuple[str, ...] | None = None, *, optional: bool = False
) -> LabelSet:
    """Collects the classes of the training rows, sorted: numbers by value, names alphabetically.

    Args:
        values: The labels.
        where: Name of the argument, for messages.
        naming: Names of the column's integer labels.
        optional: Whether labels may be None; if all are, the set is empty.

    Raises:
        LabelError: A value cannot be a label, labels have mixed types, or there is only one class.
        DataError: A value is missing.
    """
    kinds: dict[type, int] = {}
    found: dict[Any, None] = {}
    multi: bool | None = None
    for row, value in enumerate(values):
        if value is None:
            if optional:
                continue
            raise DataError(
                f"{where} is None in row {row}, and this objective learns from labels alone. Filter such rows out "
                "first, or learn from a teacher: objective=SoftTargets(teacher)."
            )
        is_list = isinstance(value, list | tuple)
        if multi is None:
            multi = is_list
        if multi != is_list:
            raise LabelError(f"{where} has one label in some rows and a list of labels in others (row {row}).")
        for label in value if is_list else (value,):
            label_name(label, where, row, naming)
            kinds.setdefault(type(label), row)
            found[label] = None
    if len(kinds) > 1:
        spoken = ", ".join(f"{kind.__name__} (row {row})" for kind, row in kinds.items())
        raise LabelError(f"{where} mixes labels of different types: {spoken}. Make them of one type with step.map.")
    names = naming or tuple(str(label) for label in sorted(found))
    if found and len(names) < 2 and not multi and not optional:
        raise LabelError(f'{where} has only one label, "{names[0]}", so there is nothing to learn. It needs two.')
    return LabelSet(names, bool(multi))


def label_name(label: Any, where: str, row: int, naming: tuple[str, ...] | None = None) -> str:
    """Returns a label's name.

    Args:
        label: A text, an integer or a boolean.
        where: Name of the argument, for the message.
        row: Number of the row, for the message.
        naming: Names of the column's integer labels.

    Raises:
        LabelError: The value cannot be a label, or its number is out of range.
    """
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


def _listed(names: tuple[str, ...], most: int = 20) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
