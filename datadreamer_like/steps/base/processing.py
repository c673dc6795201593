"""Calling a step's `process` on batches in the session's engine, and checking its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol, Self

from datadreamer_like.errors import DefinitionError, StepOutputError
from datadreamer_like.graph.engine import Engine
from datadreamer_like.graph.node import reading_engine
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.rows import Batch

from .columns import columns_together


class Processing(Protocol):
    """A step with `process`."""

    name: str

    @property
    def inputs(self) -> dict[str, Column]:
        """The input columns by name."""

    def process(self, batch: Batch) -> Mapping[str, Any]:
        """Makes one output row per input row."""

    def worker(self, engine: Engine) -> Self:
        """Returns the step, or a copy of it to send to the engine's workers."""

    def sent_parts(self) -> dict[str, Any]:
        """Returns the objects of the script that are sent with a worker."""


def process_rows(step: Processing, outputs: list[str]) -> Iterator[Mapping[str, Any]]:
    """Yields the checked results of a step's `process` on its inputs.

    Args:
        step: The step.
        outputs: Names of its outputs.

    Raises:
        DefinitionError: The step has no inputs.
        StepOutputError: `process` returned the wrong columns or number of rows.
    """
    what = f'"{step.name}"'
    if not step.inputs:
        raise DefinitionError(f"{what}: process() needs an input. Write run() to make rows without one.")
    engine = reading_engine()
    batches = _placed(columns_together(step.inputs, what), engine.batch_size)
    work = partial(_processed, step.worker(engine).process, what, outputs)
    return engine.batches(work, batches, what, step.sent_parts())


def _processed(
    process: Callable[[Batch], Any], what: str, outputs: list[str], batches: Iterator[tuple[int, Batch]]
) -> Iterator[Mapping[str, Any]]:
    for start, batch in batches:
        size = len(next(iter(batch.values())))
        made = process(batch)
        rows = f"rows {start} to {start + size - 1}"
        if not isinstance(made, Mapping) or set(made) != set(outputs):
            found = ", ".join(map(str, made)) if isinstance(made, Mapping) else type(made).__name__
            raise StepOutputError(
                f"{what}: process() returned {found} for {rows}; expected the columns {', '.join(outputs)}."
            )
        made = {name: values if hasattr(values, "__len__") else list(values) for name, values in made.items()}
        for name, values in made.items():
            if len(values) != size:
                raise StepOutputError(
                    f'{what}: process() returned {len(values)} values of "{name}" for the {size} rows of its batch '
                    f"({rows}). It must return one per row; write run() to change the number of rows."
                )
        yield made


def _placed(batches: Iterator[Batch], most: int | None) -> Iterator[tuple[int, Batch]]:
    """Yields batches of at most `most` rows, each with the position of its first row."""
    position = 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        for start in range(0, size, most or max(1, size)):
            part = batch if most is None else {name: values[start : start + most] for name, values in batch.items()}
            yield position + start, part
        position += size
