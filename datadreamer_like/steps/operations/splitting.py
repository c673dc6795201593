"""Splitting rows at random, the same way in every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datadreamer_like.errors import DefinitionError, EmptyDataset
from datadreamer_like.graph.rows import Rows

from .transforms import materialized, select


def split_rows(rows: Rows, sizes: Mapping[str, float | None], split: str, stratify_by_column: str | None) -> Rows:
    """Selects one of the random splits of a table; lazy rows are written to a temporary one first.

    `sizes` are shares or numbers by split, or None; the values of `stratify_by_column` have equal shares in all splits.

    Raises:
        EmptyDataset: There are no rows.
    """
    whole = materialized(rows)
    total = whole.num_rows or 0
    if total == 0:
        raise EmptyDataset("splits: there are no rows to split.")
    counts = _counts(sizes, total)
    order = np.random.default_rng(42).permutation(total).tolist()
    if stratify_by_column:
        column = whole.select_columns([stratify_by_column])
        labels = [label for batch in column.batches() for label in batch[stratify_by_column]]
        return select(whole, sorted(_stratified(order, labels, counts)[split]))
    start = sum(list(counts.values())[: list(counts).index(split)])
    return select(whole, sorted(order[start : start + counts[split]]))


def _stratified(order: list[int], labels: Sequence[Any], counts: Mapping[str, int]) -> dict[str, list[int]]:
    # Rows are grouped by label, in random order within a label; distributing them in turn by the splits' shares
    # gives each split its share of each label, to within one row.
    line = sorted(order, key=lambda index: repr(labels[index]))
    total = len(line)
    parts: dict[str, list[int]] = {name: [] for name in counts}
    for position, index in enumerate(line, start=1):
        owed = {name: counts[name] * position / total - len(part) for name, part in parts.items()}
        unused = (total - sum(counts.values())) * position / total - (position - 1 - sum(map(len, parts.values())))
        name = max(owed, key=owed.__getitem__)
        if owed[name] >= unused and len(parts[name]) < counts[name]:
            parts[name].append(index)
    return parts


def split_names(sizes: Mapping[str, float | None]) -> list[str]:
    """Returns the names of the splits; with a single size, the remaining rows are a split too."""
    named = [name for name, size in sizes.items() if size is not None]
    for name in named:
        size = sizes[name]
        if isinstance(size, bool) or not isinstance(size, int | float) or size < 0:
            raise DefinitionError(f"splits: {name}_size is {size!r}; expected a share (0.1) or a number of rows (100).")
    if not named:
        raise DefinitionError("splits needs at least one of train_size, validation_size, test_size.")
    if len(named) == 1 and sizes[named[0]] != 1.0:
        named.append("test" if named[0] != "test" else "train")
    return sorted(named, key=("train", "validation", "test").index)


def _counts(sizes: Mapping[str, float | None], total: int) -> dict[str, int]:
    given = {name: size for name, size in sizes.items() if size is not None}
    counts = {name: round(size * total) if isinstance(size, float) else size for name, size in given.items()}
    names = split_names(sizes)
    rest = total - sum(counts.values())
    if all(isinstance(size, float) for size in given.values()) and abs(sum(given.values()) - 1.0) < 1e-9:
        counts[names[0]] += rest  # rounding
        rest = 0
    if rest < 0:
        raise DefinitionError(f"splits: the sizes {dict(sizes)} exceed the {total} rows.")
    return {name: counts.get(name, rest) for name in names}
