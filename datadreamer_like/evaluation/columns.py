"""Columns as trainers and metrics read them: checked row by row, in chunks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
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
from datadreamer_like.graph.output import Column

PORTION = 1000
_END = object()


@dataclass(frozen=True)
class Columns:
    """The columns of a training run, by argument name.

    Attributes:
        train: Training columns, such as `train_input` and `train_output`.
        validation: Validation columns, used to choose the best epoch.
    """

    train: Mapping[str, Column]
    validation: Mapping[str, Column]

    @classmethod
    def checked(cls, optional: Collection[str] = (), **columns: object) -> Columns:
        """Checks the columns of a call; argument names start with `train_` or `validation_`.

        Args:
            optional: Arguments that may be None and are then left out.
            **columns: The columns.

        Raises:
            ArgumentTypeError: An argument is not a column.
            DefinitionError: Columns of one split differ in length.
            EmptyDataset: A column has no rows.
        """
        splits: dict[str, dict[str, Column]] = {"train": {}, "validation": {}}
        for name, value in columns.items():
            if value is not None or name not in optional:
                splits[name.partition("_")[0]][name] = check_column(value, name)
        for split in splits.values():
            check_lengths(split)
        return cls(**splits)

    def parts(self) -> dict[str, str]:
        """Returns the fingerprints of the columns."""
        return {f"input {name}": fingerprint(column, name) for name, column in self._all().items()}

    def steps(self) -> list[Node]:
        """Returns the steps that the columns come from."""
        return [column.step for column in self._all().values()]

    def _all(self) -> dict[str, Column]:
        return {**self.train, **self.validation}


def check_column(value: object, name: str) -> Column:
    """Returns the argument if it is a column.

    Raises:
        ArgumentTypeError: It is not.
    """
    if isinstance(value, OutputDatasetColumn | OutputIterableDatasetColumn):
        return value
    if isinstance(value, OutputDataset | OutputIterableDataset):
        offered = ", ".join(f'output["{column}"]' for column in value.column_names)
        raise ArgumentTypeError(f'{name} is a whole dataset; pass one column of "{value.step.name}": {offered}.')
    raise ArgumentTypeError(
        f'{name} is of type {type(value).__name__}; it must be a column, such as step.output["text"]. '
        "To use values in memory, make a step: DataSource(name, data={...})."
    )


def check_lengths(columns: Mapping[str, Column]) -> None:
    """Checks that columns have the same, non-zero number of rows, as far as it is known without reading them.

    Args:
        columns: The columns, by argument name.

    Raises:
        DefinitionError: They differ in length.
        EmptyDataset: One has no rows.
    """
    if len({column.num_rows for column in columns.values()} - {None}) > 1:
        raise DefinitionError(_different(columns))
    for name, column in columns.items():
        if column.num_rows == 0:
            raise EmptyDataset(_empty(name, column))


def read_rows(
    columns: Mapping[str, Column], *, optional: Collection[str] = (), portion: int = PORTION
) -> Iterator[list[tuple[Any, ...]]]:
    """Yields the rows of columns in chunks, each row a tuple in the order of the columns.

    Args:
        columns: The columns, by argument name.
        optional: Columns in which a value may be None.
        portion: Maximum number of rows per chunk.

    Raises:
        DataError: A value is missing.
        DefinitionError: The columns turn out to differ in length.
        EmptyDataset: There are no rows.
    """
    rows = zip_longest(*(column.values() for column in columns.values()), fillvalue=_END)
    start = 0
    while part := list(islice(rows, portion)):
        for row, values in enumerate(part, start):
            for (name, column), value in zip(columns.items(), values, strict=True):
                if value is _END:
                    raise DefinitionError(_different(columns))
                if value is None and name not in optional:
                    raise DataError(
                        f'{name}, "{column.column_names[0]}" of "{column.step.name}", is None in row {row}. '
                        "Filter such rows out first: step.filter(lambda row: row[...] is not None)."
                    )
        start += len(part)
        yield part
    if start == 0:
        raise EmptyDataset(_empty(*next(iter(columns.items()))))


def check_text(value: object, name: str, row: int) -> str:
    """Returns the value if it is a text.

    Raises:
        ArgumentTypeError: It is not.
    """
    if not isinstance(value, str):
        raise ArgumentTypeError(
            f"{name} must contain texts; row {row} has {value!r}, of type {type(value).__name__}. "
            "Choose another column, or convert its values to texts with step.map."
        )
    return value


def _different(columns: Mapping[str, Column]) -> str:
    counts = " and ".join("unknown" if c.num_rows is None else f"{c.num_rows:,}" for c in columns.values())
    return (
        f"{' and '.join(columns)} must have the same number of rows, but have {counts}. "
        "Take them from the same step, or from steps that keep the number of rows."
    )


def _empty(name: str, column: Column) -> str:
    return (
        f'{name}, "{column.column_names[0]}" of "{column.step.name}", has no rows. '
        "Check the output of the steps before it: step.head()."
    )
