"""The one class of steps that operations make: rows that come from other steps' rows by a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, Unpack

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.node import Node, working
from datadreamer_like.graph.output import OutputDataset, OutputIterableDataset
from datadreamer_like.graph.results import Kept
from datadreamer_like.graph.rows import Rows

from ..base.step import Step
from . import transforms
from .operations import OperationOptions

_OPTIONS = OperationOptions.__annotations__


class Derived(Step):
    """A step made by an operation on other steps; see `Operations`, `concat` and `zipped`."""

    def __init__(
        self,
        name: str,
        operation: str,
        sources: list[Step],
        args: dict[str, Any],
        make: Callable[[], Rows],
        lazy: bool,
        options: OperationOptions,
    ) -> None:
        self.operation = operation
        self.sources = sources
        self.operation_args = args
        self._make = make
        self._lazy = lazy
        super().__init__(
            name,
            progress_interval=options.get("progress_interval", 60),
            force=options.get("force", False),
            background=options.get("background", False),
        )

    @classmethod
    def of(
        cls,
        operation: str,
        sources: list[Step],
        args: dict[str, Any],
        make: Callable[[], Rows],
        lazy: bool,
        options: OperationOptions,
    ) -> Self:
        """Makes the step that an operation yields, named after its sources unless a name is given."""
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown:
            raise DefinitionError(f"{operation} has no option {unknown[0]!r}; it takes: {', '.join(_OPTIONS)}.")
        name = options.get("name") or _name(operation, sources)
        return cls(name, operation, sources, args, make, lazy, options)

    @property
    def moves_rows(self) -> bool:
        """Whether the operation leaves the rows that it takes as they are."""
        return self.operation not in ("map", "rename_column", "rename_columns", "zipped")

    def setup(self) -> None:
        """Registers whatever columns the operation gives; known when it runs."""
        self.register_output("*")

    def run(self) -> Rows:
        """Applies the operation."""
        return self._make()

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the operation, its arguments and its sources."""
        parts = {"operation": fingerprint(self.operation)}
        for name, value in self.operation_args.items():
            parts[f"argument {name}"] = fingerprint(value, f'"{self.name}": argument "{name}"')
        for index, source in enumerate(self.sources):
            parts["input" if len(self.sources) == 1 else f"input {index + 1}"] = source.fingerprint
        return parts

    def make_output(self) -> OutputDataset | OutputIterableDataset:
        """Applies the operation, or finds its rows; lazy ones are neither kept nor looked for."""
        self.parents = list(dict.fromkeys(self.sources))
        if self._lazy:
            # Nothing is kept, so there is nothing to find: a view on a table, or rows generated lazily.
            with working(self):
                made = self._make()
            rows = replace(made, node=self)
            return OutputIterableDataset(self, rows) if rows.table is None else OutputDataset(self, rows)
        return super().make_output()

    def build(self, draft: Path) -> Kept:
        """Applies the operation and keeps its rows."""
        return self.write_rows(self._make(), draft)


def concat(*steps: Step, lazy: bool = True, **options: Unpack[OperationOptions]) -> Derived:
    """Makes a step with the rows of several steps, one after another.

    Args:
        *steps: Steps with the same columns.
        lazy: Generate the rows lazily.
        **options: See `OperationOptions`.

    Raises:
        DefinitionError: There are no steps, or their columns differ.
    """
    _check_steps("concat", steps)
    first = steps[0].output.column_names
    for step in steps[1:]:
        if set(step.output.column_names) != set(first):
            raise DefinitionError(
                f'concat: "{step.name}" has the columns {step.output.column_names}, "{steps[0].name}" has {first}. '
                "Rename or select columns first."
            )
    return Derived.of(
        "concat", list(steps), {}, lambda: transforms.concatenated([step.output.rows for step in steps]), lazy, options
    )


def zipped(*steps: Step, lazy: bool = True, **options: Unpack[OperationOptions]) -> Derived:
    """Makes a step with the columns of several steps, side by side.

    Args:
        *steps: Steps with equally many rows and different columns.
        lazy: Generate the rows lazily.
        **options: See `OperationOptions`.

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
    return Derived.of(
        "zipped", list(steps), {}, lambda: transforms.side_by_side([step.output.rows for step in steps]), lazy, options
    )


def _check_steps(what: str, steps: tuple[Any, ...]) -> None:
    if not steps:
        raise DefinitionError(f"{what} needs at least one step.")
    for step in steps:
        if not isinstance(step, Step):
            raise DefinitionError(f"{what} takes steps; got {type(step).__name__}.")


def _name(operation: str, sources: list[Step]) -> str:
    if operation in ("concat", "zipped"):
        return f"{operation}({', '.join(_own_name(source) for source in sources)})"
    first = _own_name(sources[0])
    session = sources[0].session
    if session is None:
        return f"{first} ({operation})"
    return session.results.free_name(f"{first} ({operation})", lambda count: f"{first} ({operation} #{count})")


def _own_name(node: Node) -> str:
    return node.name.rpartition(" / ")[2]
