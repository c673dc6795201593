"""Temporary tables of lazy rows, for what needs positions: sorting, splitting, a retriever's corpus."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

from datadreamer_like.storage.folders import explained
from datadreamer_like.storage.tables import TableWriter, read_table

from .output import OutputDatasetColumn, OutputIterableDatasetColumn
from .rows import Rows

_WHAT = "Writing lazy rows to a temporary table"


def materialized(rows: Rows) -> Rows:
    """Writes lazy rows to a temporary table in the session's folder, which has room for results."""
    if rows.table is not None:
        return rows
    session = rows.node.session if rows.node is not None else None
    place = session.results.places.work if session is not None and not session.in_memory else None
    with explained(_WHAT, place or Path(tempfile.gettempdir())):
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="rows-", dir=place))
    try:
        writer = TableWriter(folder, what="rows", schema=rows.schema)
        for batch in rows.read():
            with explained(_WHAT, folder):
                writer.write(batch)
        with explained(_WHAT, folder):
            writer.close(folder.name)
        table = read_table(folder, pickles=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if os.name == "posix":
        shutil.rmtree(folder, ignore_errors=True)  # the mapped files stay readable, and nothing is left after a kill
    else:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Rows.of_table(table, rows.origin, rows.node)


def with_positions(column: OutputIterableDatasetColumn) -> OutputDatasetColumn:
    """Returns a column of lazy rows as one with random access; its rows are generated on first use."""
    return OutputDatasetColumn(column.step, partial(materialized, column.rows), columns=column.column_names)
