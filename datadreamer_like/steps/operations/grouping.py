"""Splitting rows so that those of one group are in one split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.rows import Rows

from ..base.dataset_node import DatasetNode
from ..base.trace import rows_from

Positions = np.ndarray[Any, np.dtype[np.int64]]


def groups_of(rows: Rows, group_by: str | DatasetNode) -> Positions:
    """Returns a number for each row's group.

    Args:
        rows: Rows of a table.
        group_by: A column, whose equal values are a group; or a step that the rows were made from: rows that came from
            one of its rows, directly or over others, are a group. A row without a value or origin is its own group.
    """
    total = rows.num_rows or 0
    if not isinstance(group_by, str):
        return _connected(total, *rows_from(rows.node, group_by, total))
    numbers: dict[str, int] = {}
    found = np.arange(total)
    place = 0
    for batch in rows.select_columns([group_by]).batches():
        for row, value in enumerate(batch[group_by], place):
            if value is not None and value == value:
                found[row] = numbers.setdefault(repr(value), row)
        place += len(batch[group_by])
    return found


def _connected(total: int, rows: Positions, sources: Positions) -> Positions:
    """Returns the number of each row's group: rows that share a source, directly or through others, have one."""
    parents = list(range(total))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    first: dict[int, int] = {}
    for row, source in zip(rows.tolist(), sources.tolist(), strict=True):
        earlier, own = root(first.setdefault(source, row)), root(row)
        parents[max(earlier, own)] = min(earlier, own)
    return np.array([root(row) for row in range(total)], dtype=np.int64)


def grouped(order: Sequence[int], groups: Positions, counts: Mapping[str, int]) -> dict[str, list[int]]:
    """Distributes whole groups to splits, in random order, so that each split is as close to its count as groups allow.

    Args:
        order: All rows in random order.
        groups: The number of each row's group.
        counts: Number of rows that each split should have; rows over the sum are left out.

    Raises:
        DefinitionError: There are fewer groups than splits.
    """
    members: dict[int, list[int]] = {}
    for row in order:
        members.setdefault(int(groups[row]), []).append(row)
    if len(members) < len(counts):
        raise DefinitionError(
            f"splits: the number of groups is {len(members)}, too few for {len(counts)} splits. Rows that a batched "
            "function made, or that were prompted with the same examples, are one group: group by a column instead."
        )
    total = len(order)
    wanted = {**counts, "": total - sum(counts.values())}  # those under "" are left out
    parts: dict[str, list[list[int]]] = {name: [] for name in wanted}
    sizes = dict.fromkeys(wanted, 0)
    done = 0
    for group in members.values():
        done += len(group)
        name = max(wanted, key=lambda name: wanted[name] * done / total - sizes[name])
        parts[name].append(group)
        sizes[name] += len(group)
    for name in counts:
        if not parts[name]:
            # Of those that have equally many, the rows that are left out: another split may have one group only.
            fullest = max(parts, key=lambda name: (len(parts[name]), not name))
            smallest = min(parts[fullest], key=len)
            parts[fullest].remove(smallest)
            parts[name].append(smallest)
    return {name: [row for group in part for row in group] for name, part in parts.items() if name}
