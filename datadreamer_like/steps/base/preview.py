"""What a preview leaves of a step: at most as many rows as it is of, or as the step's inputs have."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from datadreamer_like.errors import DataDreamerError
from datadreamer_like.graph.node import Node
from datadreamer_like.graph.output import (
    Column,
    OutputDataset,
    OutputDatasetColumn,
    OutputDatasetMixin,
    OutputIterableDataset,
    OutputIterableDatasetColumn,
)
from datadreamer_like.graph.rows import Batch, Rows

from .columns import whole
from .dataset_node import UnmadeDataset

logger = logging.getLogger("datadreamer_like")


class Previewable(Protocol):
    """What of a step a preview needs."""

    whole_inputs: ClassVar[frozenset[str]]
    makes_steps: ClassVar[bool]
    inside: Node | None
    preview_rows: int | None
    _inputs: dict[str, Column]


def most_rows(step: Previewable) -> int | None:
    """Returns the most rows that a step makes; None for all: it is not in a preview, or what it reads is cut already.

    A step that makes one row for each of its inputs' keeps all of them, so that its columns fit theirs. One that is
    made of steps keeps all rows that these make of its inputs, such as those of further rounds.
    """
    if step.preview_rows is None:
        return None
    columns = [column for name, column in step._inputs.items() if name not in step.whole_inputs]
    if columns and (step.makes_steps or step.inside is not None):
        return None
    return max([step.preview_rows, *(column.num_rows or 0 for column in columns)])


def previewed(step: Previewable, rows: Rows) -> Rows:
    """Returns the first rows of a step in a preview; all of them elsewhere."""
    most = most_rows(step)
    return rows if most is None else _first(rows, most)


def previewed_batches(step: Previewable, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yields the first rows to prompt for in a preview, so that nothing is sent for others; all of them elsewhere."""
    left = most_rows(step)
    for batch in batches:
        if left is None:
            yield batch
            continue
        size = len(next(iter(batch.values()), []))
        yield batch if size <= left else {name: values[:left] for name, values in batch.items()}
        left -= min(left, size)
        if not left:
            return


def cut_inputs(step: Previewable, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the inputs given to a step, of which a preview leaves the first rows."""
    size, cut = step.preview_rows, dict[int, OutputDatasetMixin]()
    if size is None or not isinstance(given, dict):
        return given  # type: ignore[return-value]  # checked by the step

    def first(column: Any) -> Any:
        if not isinstance(column, OutputDatasetColumn | OutputIterableDatasetColumn):
            return column
        dataset = whole(column)
        if isinstance(dataset, UnmadeDataset):
            return column
        # Columns of one dataset are read together.
        rows = cut.setdefault(id(dataset), _first_of(dataset, size))
        return rows if dataset is column else rows[column.column_names[0]]  # type: ignore[index]

    return {name: column if name in step.whole_inputs else first(column) for name, column in given.items()}


def fail_unless_preview(step: Previewable, error: DataDreamerError, instead: str) -> None:
    """Raises the error of a step that needs more rows; in a preview, warns of it and of what the step does instead."""
    if step.preview_rows is None:
        raise error
    logger.warning("%s This is a preview: %s.", error, instead)


def _first_of(dataset: OutputDatasetMixin, most: int) -> OutputDatasetMixin:
    rows, kind = _first(dataset.rows, most), type(dataset)
    assert issubclass(kind, OutputDataset | OutputIterableDataset)
    first = kind(dataset.step, rows, dataset.pickled)
    first.cut = most
    return first


def _first(rows: Rows, most: int) -> Rows:
    if rows.num_rows is not None and rows.num_rows <= most:
        return rows
    if rows.table is not None:
        return Rows.of_table(rows.table.select(range(most)), rows.origin, rows.node)

    def read() -> Iterator[pa.RecordBatch]:
        left = most
        for batch in rows.read():
            yield batch.slice(0, left)
            left -= min(left, batch.num_rows)
            if not left:
                return

    return replace(rows, num_rows=None if rows.num_rows is None else most, read=read)
