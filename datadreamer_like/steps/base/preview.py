"""What a preview leaves of a step: at most as many rows as it is of, or as the step's inputs have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import pyarrow as pa

from datadreamer_like.graph.output import Column
from datadreamer_like.graph.rows import Batch, Rows
from datadreamer_like.graph.session import DataDreamer


class Previewable(Protocol):
    """What of a step a preview needs."""

    session: DataDreamer | None
    _inputs: dict[str, Column]


def most_rows(step: Previewable) -> int | None:
    """Returns the most rows that a step makes; None if it is not in a preview.

    A step that makes one row for each of its inputs' keeps all of them, so that its columns fit theirs.
    """
    preview = None if step.session is None else step.session.preview
    if preview is None:
        return None
    columns: Mapping[str, Column] = step._inputs
    return max([preview, *(column.num_rows or 0 for column in columns.values())])


def previewed(step: Previewable, rows: Rows) -> Rows:
    """Returns the first rows of a step in a preview; all of them elsewhere."""
    most = most_rows(step)
    if most is None or (rows.num_rows is not None and rows.num_rows <= most):
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
