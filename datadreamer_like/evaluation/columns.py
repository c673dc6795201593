"""The columns and numbers that trainers, stages and judges take: checked, and columns read in chunks."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any

import numpy as np

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset
from datadreamer_like.graph import OutputDatasetMixin
from datadreamer_like.graph.output import Column

logger = logging.getLogger("datadreamer_like")

_END = object()


Columns = Mapping[str, Mapping[str, Column]]
"""The columns of a training run: "train" and "validation", the rows that choose the best epoch, by argument name."""


SUPERVISED = ("input", "output")
"""Names of the columns of a trainer that learns outputs of inputs; see `named_columns`."""


def named_columns(names: Sequence[str], train: Sequence[Any], validation: Sequence[Any]) -> dict[str, Any]:
    """Returns the columns of a training run by argument name, such as "train_input", for `names` such as "input"."""
    splits = {"train": train, "validation": validation}
    return {f"{split}_{name}": c for split, columns in splits.items() for name, c in zip(names, columns, strict=True)}


def check_columns(columns: Mapping[str, object], optional: Collection[str] = ()) -> Columns:
    """Checks the columns of a call with `check_column` and, by split, `check_lengths`.

    Argument names start with `train_` or `validation_`. Those in `optional` may be None, and are then left out.
    """
    splits: dict[str, dict[str, Column]] = {"train": {}, "validation": {}}
    for name, value in columns.items():
        if value is not None or name not in optional:
            splits[name.partition("_")[0]][name] = check_column(value, name)
    for split in splits.values():
        check_lengths(split)
    return splits


def check_column(value: object, name: str) -> Column:
    """Returns the argument `name` if it is a column, else raises `ArgumentTypeError`."""
    if isinstance(value, Column):
        return value
    if isinstance(value, OutputDatasetMixin):
        offered = ", ".join(f'output["{column}"]' for column in value.column_names)
        raise ArgumentTypeError(f'{name} is a whole dataset; pass one column of "{value.step.name}": {offered}.')
    raise ArgumentTypeError(
        f'{name} is of type {type(value).__name__}; it must be a column, such as step.output["text"]. '
        "To use values in memory, make a step: DataSource(name, data={...})."
    )


def check_lengths(columns: Mapping[str, Column]) -> None:
    """Raises `DefinitionError` if columns are known to differ in length, `EmptyDataset` if one has no rows."""
    if len({column.num_rows for column in columns.values()} - {None}) > 1:
        raise DefinitionError(_different(columns))
    for name, column in columns.items():
        if column.num_rows == 0:
            raise EmptyDataset(_empty(name, column))


def read_rows(
    columns: Mapping[str, Column],
    *,
    labels: str | Collection[str] = "",
    optional: bool = False,
    numbers: Collection[str] = (),
    portion: int = 1000,
) -> Iterator[list[tuple[Any, ...]]]:
    """Yields the rows of columns in chunks of up to `portion`, each row a tuple in the order of the columns.

    All values must be texts, except those of the columns `numbers`, and those of the column or columns `labels`, which
    may also be None if `optional`.

    Raises:
        DataError: A value is missing, or a number is not finite.
        ArgumentTypeError: A value is not a text, or not a number.
        DefinitionError: The columns turn out to differ in length.
        EmptyDataset: There are no rows.
    """
    untyped = (labels,) if isinstance(labels, str) else labels
    rows = zip_longest(*(column.values() for column in columns.values()), fillvalue=_END)
    start = 0
    while part := list(islice(rows, portion)):
        for row, values in enumerate(part, start):
            if any(value is _END for value in values):
                raise DefinitionError(_different(columns))
            for (name, column), value in zip(columns.items(), values, strict=True):
                if value is None and not (optional and name in untyped):
                    raise DataError(
                        f'{name}, "{column.column_names[0]}" of "{column.step.name}", is None in row {row}. '
                        "Filter such rows out first: step.filter(lambda row: row[...] is not None)."
                    )
                if name in numbers:
                    _check_finite(value, name, row)
                elif name not in untyped and not isinstance(value, str):
                    raise ArgumentTypeError(
                        f"{name} must contain texts; row {row} has {value!r}, of type {type(value).__name__}. "
                        "Choose another column, or convert its values to texts with step.map."
                    )
        start += len(part)
        yield part
    if start == 0:
        raise EmptyDataset(_empty(*next(iter(columns.items()))))


def _check_finite(value: object, name: str, row: int) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ArgumentTypeError(
            f"{name} must contain numbers; row {row} has {value!r}, of type {type(value).__name__}. "
            "Choose another column, or convert its values with step.map."
        )
    if not math.isfinite(value):
        raise DataError(f"{name} is {value} in row {row}; it must be a finite number. Filter such rows out first.")


def check_varied(values: Iterable[object], name: str) -> None:
    """Raises `DataError` if the column `name` has one value in every row; for validation rows, it only warns."""
    found = iter(values)
    first = next(found, _END)
    if first is _END or not all(value == first for value in found):
        return
    if name.startswith("validation"):
        logger.warning("%s is the same in every row, so it cannot show which epoch is better.", name)
    else:
        raise DataError(
            f"{name} is the same in every row, so there is nothing to learn. Choose another column, or add rows that "
            "differ."
        )


def read_texts(column: Column, name: str) -> Iterator[str]:
    """Yields the texts of a column; for the errors see `read_rows`."""
    return (text for part in read_rows({name: column}) for (text,) in part)


def plain(value: Any) -> Any:
    """Returns a number of numpy as Python's own, and other values as they are."""
    return value.item() if isinstance(value, np.generic) else value


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
