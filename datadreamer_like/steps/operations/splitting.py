"""Splitting rows at random, the same way in every run."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, EmptyDataset
from datadreamer_like.graph.lazy_table import materialized
from datadreamer_like.graph.rows import Rows

from ..base.dataset_node import DatasetNode
from .grouping import grouped, groups_of
from .transforms import select

logger = logging.getLogger("datadreamer_like")


def split_rows(
    rows: Rows,
    sizes: Mapping[str, float | None],
    split: str,
    stratify_by_column: str | None,
    group_by: str | DatasetNode | None = None,
) -> Rows:
    """Selects one of the random splits of a table; lazy rows are written to a temporary one first.

    `sizes` are shares or numbers by split, or None; the values of `stratify_by_column` have equal shares in all splits.
    Groups are described at `groups_of`.

    Raises:
        EmptyDataset: There are no rows.
    """
    whole = materialized(rows)
    total = whole.num_rows or 0
    if total == 0:
        raise EmptyDataset("splits: there are no rows to split.")
    counts = _counts(sizes, total)
    order = np.random.default_rng(42).permutation(total).tolist()
    if group_by is not None:
        return select(whole, sorted(grouped(order, groups_of(whole, group_by), counts)[split]))
    if stratify_by_column:
        column = whole.select_columns([stratify_by_column])
        labels = [label for batch in column.batches() for label in batch[stratify_by_column]]
        parts = _stratified(order, labels, counts)
        if whole.node is None or whole.node.preview_rows is None:
            _warn_of_absent(labels, parts[split], split, stratify_by_column)
        return select(whole, sorted(parts[split]))
    start = sum(list(counts.values())[: list(counts).index(split)])
    return select(whole, sorted(order[start : start + counts[split]]))


def check_groups(group_by: object, stratify_by_column: str | None) -> None:
    """Checks what rows are grouped by.

    Raises:
        ArgumentTypeError: It is neither a column's name nor a step.
        DefinitionError: The splits are stratified too.
    """
    if not isinstance(group_by, str | DatasetNode):
        raise ArgumentTypeError(f"splits: group_by is {group_by!r:.100}; expected the name of a column, or a step.")
    if stratify_by_column is not None:
        raise DefinitionError("splits: give stratify_by_column or group_by, not both.")


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


def _warn_of_absent(labels: Sequence[Any], part: Sequence[int], split: str, column: str) -> None:
    seen = {repr(labels[index]) for index in part}
    if rare := {label: count for label, count in Counter(map(repr, labels)).items() if label not in seen}:
        shown = ", ".join(f"{label} (rows: {count})" for label, count in list(rare.items())[:10])
        more = f" and {len(rare) - 10:,} more" if len(rare) > 10 else ""
        logger.warning(
            'splits: the split "%s" has no row with these values of "%s", which have too few: %s%s.',
            split, column, shown, more,
        )  # fmt: skip


def split_names(sizes: Mapping[str, float | None], total: int | None = None) -> list[str]:
    """Returns the names of the splits; with a single size, the remaining rows of `total`, if any, are a split too.

    A size of None or 0 makes no split; without any size there is one split `train` of all rows.
    """
    named = [name for name, size in sizes.items() if size is not None]
    for name in named:
        size = sizes[name]
        if isinstance(size, bool) or not isinstance(size, int | float | np.integer | np.floating) or not size >= 0:
            raise DefinitionError(f"splits: {name}_size is {size!r}; expected a share (0.1) or a number of rows (100).")
    named = [name for name in named if sizes[name]]
    shares = [name for name in named if _is_share(sizes[name])]
    if shares and len(shares) < len(named):
        raise DefinitionError(f"splits: {_shown(sizes)} mixes shares (0.1) and numbers of rows (100). Use one of them.")
    given = sum(Decimal(str(sizes[name])) for name in shares)
    if shares and not math.isclose(given, 1, rel_tol=1e-9) and (given > 1 or len(shares) > 1):
        raise DefinitionError(f"splits: the shares {_shown(sizes)} sum to {given}; they must sum to 1.")
    if len(named) == 1 and given != 1 and (shares or sizes[named[0]] != total):
        named.append("test" if named[0] != "test" else "train")
    return sorted(named or ["train"], key=("train", "validation", "test").index)


def needs_total(sizes: Mapping[str, float | None]) -> bool:
    """Returns whether the number of all rows decides if there are remaining rows for another split."""
    given = [size for size in sizes.values() if size]
    return len(given) == 1 and not _is_share(given[0])


def sizes_in_preview(sizes: Mapping[str, float | None], total: int) -> dict[str, float | None]:
    """Returns sizes for the rows of a preview: numbers that exceed them become shares, or leave the other split one."""
    split_names(sizes)  # refuses what is no size
    numbers = {name: size for name, size in sizes.items() if size and not _is_share(size)}
    given = sum(numbers.values())
    if not numbers or given < total or (given == total and len(numbers) > 1):
        return dict(sizes)
    if len(numbers) == 1:
        return dict(sizes) | dict.fromkeys(numbers, max(1, total - 1))
    return dict(sizes) | {name: size / given for name, size in numbers.items()}


def _is_share(size: float | None) -> bool:
    return isinstance(size, float | np.floating)


def _shown(sizes: Mapping[str, float | None]) -> dict[str, float]:
    return {name: size for name, size in sizes.items() if size is not None}


def _counts(sizes: Mapping[str, float | None], total: int) -> dict[str, int]:
    names = split_names(sizes, total)
    given = {name: sizes[name] or 0 for name in names if sizes[name]} or {"train": 1.0}
    shares = {name: size for name, size in given.items() if _is_share(size)}
    counts = {name: round(size * total) if name in shares else int(size) for name, size in given.items()}
    rest = total - sum(counts.values())
    if shares and len(given) == len(names):
        counts[names[0]] += rest  # rounding
        rest = 0
    if rest < 0:
        raise DefinitionError(f"splits: the sizes {_shown(sizes)} exceed the {total} rows.")
    found = {name: counts.get(name, rest) for name in names}
    for name in names:
        largest = max(found, key=found.__getitem__)
        if not found[name] and (name in shares or name not in given) and found[largest] > 1 and shares:
            found[name], found[largest] = 1, found[largest] - 1  # of few rows, rounding leaves none
    if empty := [name for name, count in found.items() if not count and name in given]:
        raise DefinitionError(f"splits: {total} rows are too few for {_shown(sizes)}: {', '.join(empty)} has no row.")
    return found
