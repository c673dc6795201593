"""Columns as trainers read them: checked row by row, a portion at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset
from datadreamer_like.graph import (
    Node,
    OutputDataset,
    OutputDatasetColumn,
    OutputIterableDataset,
    OutputIterableDatasetColumn,
)
from datadreamer_like.graph.fingerprint import fingerprint

Column = OutputDatasetColumn | OutputIterableDatasetColumn

PORTION = 1000
_END = object()


@dataclass(frozen=True)
class Columns:
    """The columns of a training, by argument name.

    Attributes:
        train_input: What the model is given.
        train_output: What it is to give.
        validation_input: The same for the rows by which the best epoch is chosen.
        validation_output: The same.
    """

    train_input: Column
    train_output: Column
    validation_input: Column
    validation_output: Column

    @classmethod
    def checked(cls, *columns: object) -> Columns:
        """Takes the columns of a call.

        Raises:
            ArgumentTypeError: One is no column.
            DefinitionError: Two that belong together are of different length.
            EmptyDataset: One has no rows.
        """
        names = ("train_input", "train_output", "validation_input", "validation_output")
        taken = cls(*(check_column(column, name) for name, column in zip(names, columns, strict=True)))
        check_pair(taken.train_input, taken.train_output, names[:2])
        check_pair(taken.validation_input, taken.validation_output, names[2:])
        return taken

    def parts(self) -> dict[str, str]:
        """Returns the fingerprints of the columns."""
        return {f"input {name}": fingerprint(column, name) for name, column in vars(self).items()}

    def steps(self) -> list[Node]:
        """Returns the steps that the columns come from."""
        return [column.step for column in vars(self).values()]


def check_column(value: object, name: str) -> Column:
    """Returns an argument that must be a column.

    Raises:
        ArgumentTypeError: It is something else.
    """
    if isinstance(value, OutputDatasetColumn | OutputIterableDatasetColumn):
        return value
    if isinstance(value, OutputDataset | OutputIterableDataset):
        offered = ", ".join(f'output["{column}"]' for column in value.column_names)
        raise ArgumentTypeError(f'{name} is a whole dataset; it must be one column of "{value.step.name}": {offered}.')
    raise ArgumentTypeError(
        f'{name} is of type {type(value).__name__}; it must be a column, such as step.output["text"]. '
        "Make a step of values in memory: DataSource(name, data={...})."
    )


def check_pair(first: Column, second: Column, names: tuple[str, str]) -> None:
    """Refuses columns that cannot be rows together, as far as that can be told without reading them.

    Raises:
        DefinitionError: They are of different length.
        EmptyDataset: They have no rows.
    """
    lengths = first.num_rows, second.num_rows
    if None not in lengths and lengths[0] != lengths[1]:
        raise DefinitionError(_different(names, lengths))
    for name, column in zip(names, (first, second), strict=True):
        if column.num_rows == 0:
            raise EmptyDataset(_empty(name, column))


def read_pairs(
    first: Column, second: Column, names: tuple[str, str], portion: int = PORTION
) -> Iterator[list[tuple[Any, Any]]]:
    """Yields the rows of two columns in portions; no value is None.

    Raises:
        DataError: A value is missing.
        DefinitionError: The columns turn out to be of different length.
        EmptyDataset: There are no rows.
    """
    rows = zip_longest(first.values(), second.values(), fillvalue=_END)
    start = 0
    while part := list(islice(rows, portion)):
        for row, pair in enumerate(part, start):
            for name, column, value in zip(names, (first, second), pair, strict=True):
                if value is _END:
                    raise DefinitionError(_different(names, (first.num_rows, second.num_rows)))
                if value is None:
                    raise DataError(
                        f'{name}, "{column.column_names[0]}" of "{column.step.name}", is None in row {row}. '
                        "Filter such rows out first: step.filter(lambda row: row[...] is not None)."
                    )
        start += len(part)
        yield part
    if start == 0:
        raise EmptyDataset(_empty(names[0], first))


def check_text(value: object, name: str, row: int) -> str:
    """Returns a value that must be a text.

    Raises:
        ArgumentTypeError: It is something else.
    """
    if not isinstance(value, str):
        raise ArgumentTypeError(
            f"{name} must hold texts; row {row} holds {value!r}, which is of type {type(value).__name__}. "
            "Choose another column, or turn its values into texts with step.map."
        )
    return value


def _different(names: tuple[str, str], lengths: tuple[int | None, int | None]) -> str:
    counts = " and ".join("unknown many" if n is None else f"{n:,}" for n in lengths)
    return (
        f"{names[0]} and {names[1]} must have one row for one row, but have {counts} rows. "
        "Take both from the same step, or from steps that kept its rows."
    )


def _empty(name: str, column: Column) -> str:
    return (
        f'{name}, "{column.column_names[0]}" of "{column.step.name}", has no rows. '
        "Look at what the steps before it keep: step.head()."
    )
