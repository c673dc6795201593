"""Operations on several steps: concatenating rows and joining columns."""

from __future__ import annotations

from typing import Any, Unpack

from datadreamer_like.errors import ArgumentTypeError, DefinitionError

from ..base.options import OperationOptions, takes_lazy_options
from ..base.step import Derived, Step
from . import transforms


@takes_lazy_options
def concat(*steps: Step, lazy: bool = True, **options: Unpack[OperationOptions]) -> Derived:
    """Concatenates the rows of steps; `lazy=False` saves them. A column that a step does not have is None in its rows.

    Class labels are aligned by class name.

    Raises:
        DefinitionError: There are no steps, or no column is common to all.
        StepOutputTypeError: A column holds other types, or class labels and plain numbers.
    """
    _check_steps("concat", steps)
    columns = {step.name: step.output.column_names for step in steps}
    if not set.intersection(*map(set, columns.values())):
        shown = "; ".join(f'"{name}" has {", ".join(names)}' for name, names in columns.items())
        raise DefinitionError(f"concat: the steps have no column in common: {shown}. Rename columns first.")
    return Derived("concat", list(steps), transforms.concatenated, {}, lazy, options)


@takes_lazy_options
def zipped(*steps: Step, lazy: bool = True, **options: Unpack[OperationOptions]) -> Derived:
    """Joins the different columns of steps with equally many rows, row by row; `lazy=False` saves them.

    Raises:
        DefinitionError: There are no steps, two share a column's name, or their numbers of rows differ.
    """
    _check_steps("zipped", steps)
    names = [name for step in steps for name in step.output.column_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DefinitionError(f"zipped: more than one step has the column {', '.join(twice)}. Rename it first.")
    lengths = {step.name: rows for step in steps if (rows := step.output.num_rows) is not None}
    if len(set(lengths.values())) > 1:
        raise DefinitionError(f"zipped: the steps have different numbers of rows: {lengths}.")
    return Derived("zipped", list(steps), transforms.side_by_side, {}, lazy, options)


def _check_steps(what: str, steps: tuple[Any, ...]) -> None:
    if not steps:
        raise DefinitionError(f"{what} needs at least one step.")
    for step in steps:
        if not isinstance(step, Step):
            raise ArgumentTypeError(f"{what} takes steps; got {type(step).__name__}.")
