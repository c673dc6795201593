"""Calling a step's `process` on batches, and checking its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from datadreamer_like.errors import StepOutputError
from datadreamer_like.graph.rows import Batch


def processed(
    process: Callable[[Batch], Any], what: str, outputs: list[str], batches: Iterator[tuple[int, Batch]]
) -> Iterator[Mapping[str, Any]]:
    """Yields the results of a step's `process` on batches, each with the position of its first row.

    Raises:
        StepOutputError: `process` returned the wrong columns or number of rows.
    """
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


def placed(batches: Iterator[Batch], most: int | None) -> Iterator[tuple[int, Batch]]:
    """Yields batches of at most `most` rows, each with the position of its first row."""
    position = 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        for start in range(0, size, most or max(1, size)):
            part = batch if most is None else {name: values[start : start + most] for name, values in batch.items()}
            yield position + start, part
        position += size
