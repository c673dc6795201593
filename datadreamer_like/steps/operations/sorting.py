"""Sorting rows by columns, in Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.lazy_table import materialized
from datadreamer_like.graph.rows import Rows, Table
from datadreamer_like.storage.values import FEATURE, PICKLED, class_names, to_list

from .transforms import Positions, select, table_of


def sort(rows: Rows, column_names: Sequence[str], reverse: Sequence[bool], null_placement: str) -> Rows:
    """Sorts rows by columns, stably. Missing values and NaN are placed at one end in either direction.

    Texts are compared by code points, class labels by number.
    """
    if null_placement not in ("at_end", "at_start"):
        raise DefinitionError(f'sort: null_placement is {null_placement!r}; expected "at_end" or "at_start".')
    whole = materialized(rows)
    return select(whole, sorted_positions(table_of(whole), column_names, reverse, null_placement))


def sorted_positions(
    table: Table, names: Sequence[str], reverse: Sequence[bool], null_placement: str = "at_end"
) -> Positions:
    """Returns the positions of a table's rows in sorted order; see `sort`."""
    keys = table.columns(list(dict.fromkeys(names))).whole().combine_chunks()
    order = _arrow_order if all(map(_is_sorted_by_arrow, keys.schema)) else _python_order
    return order(keys, names, reverse, null_placement)


def _is_sorted_by_arrow(field: pa.Field) -> bool:
    metadata = field.metadata or {}
    stored_otherwise = PICKLED in metadata or (FEATURE in metadata and class_names(field) is None)
    return not (pa.types.is_nested(field.type) or isinstance(field.type, pa.ExtensionType) or stored_otherwise)


def _arrow_order(keys: pa.Table, names: Sequence[str], reverse: Sequence[bool], nulls: str) -> Positions:
    columns: dict[str, pa.ChunkedArray] = {}
    order: dict[str, str] = {}
    for place, (name, backwards) in enumerate(zip(names, reverse, strict=True)):
        column = keys.column(name)
        if pa.types.is_boolean(column.type) or pa.types.is_null(column.type):
            column = pc.cast(column, pa.int8())
        if nulls == "at_start":
            columns[f"{place} missing"] = pc.cast(pc.is_null(column, nan_is_null=True), pa.int8())
            order[f"{place} missing"] = "descending"
        columns[f"{place}"] = column
        order[f"{place}"] = "descending" if backwards else "ascending"
    return np.asarray(pc.sort_indices(pa.table(columns), sort_keys=list(order.items()))).astype(np.int64)


def _python_order(keys: pa.Table, names: Sequence[str], reverse: Sequence[bool], nulls: str) -> Positions:
    order = list(range(keys.num_rows))
    for name, backwards in reversed(list(zip(names, reverse, strict=True))):
        values: list[Any] = to_list(keys.column(name), keys.schema.field(name))
        present = [index for index in order if values[index] is not None]
        missing = [index for index in order if values[index] is None]
        sort_keys = {index: _sort_key(values[index]) for index in present}
        try:
            # sorted() keeps equal rows in order, also when the order is reversed.
            present.sort(key=sort_keys.__getitem__, reverse=backwards)
        except TypeError as error:
            raise DefinitionError(
                f'sort: column "{name}" holds values that have no order ({error}). Make a column to sort by: step.map.'
            ) from error
        order = present + missing if nulls == "at_end" else missing + present
    return np.array(order, dtype=np.int64)


def _sort_key(value: Any) -> Any:
    """Returns a key that has an order for lists too: missing elements and NaN come after all others."""
    if isinstance(value, list):
        return [(2, 0) if v is None else (1, 0) if v != v else (0, _sort_key(v)) for v in value]
    return value
