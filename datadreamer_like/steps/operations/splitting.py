"""Splitting rows at random, the same way in every run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datadreamer_like.errors import DefinitionError, EmptyDataset
from datadreamer_like.graph.rows import Rows

from .transforms import materialized, select


@dataclass(frozen=True)
class Split:
    """Selects one of the random splits of some rows.

    Attributes:
        sizes: Size of each split: a share, a number, or None.
        name: The split to select.
        stratify_by: Column whose values have equal shares in all splits.
        seed: Random seed.
    """

    sizes: Mapping[str, float | None]
    name: str
    stratify_by: str | None = None
    seed: int = 42

    def __call__(self, rows: Rows) -> Rows:
        """Selects the split from a table; lazy rows are written to a temporary one first.

        Raises:
            EmptyDataset: There are no rows.
        """
        whole = materialized(rows)
        total = whole.num_rows or 0
        if total == 0:
            raise EmptyDataset("splits: there are no rows to split.")
        counts = _counts(self.sizes, total)
        if self.stratify_by:
            column = whole.select_columns([self.stratify_by])
            labels = [label for batch in column.batches() for label in batch[self.stratify_by]]
            parts = self._stratified(labels, counts)
        else:
            parts = self._plain(total, counts)
        return select(whole, sorted(parts[self.name]))

    def _plain(self, total: int, counts: Mapping[str, int]) -> dict[str, list[int]]:
        order = np.random.default_rng(self.seed).permutation(total).tolist()
        ends = list(itertools.accumulate(counts.values(), initial=0))
        return {name: order[start:end] for name, start, end in zip(counts, ends, ends[1:], strict=False)}

    def _stratified(self, labels: Sequence[Any], counts: Mapping[str, int]) -> dict[str, list[int]]:
        # Rows are grouped by label, in random order within a label; distributing them in turn by the splits' shares
        # gives each split its share of each label, to within one row.
        rng = np.random.default_rng(self.seed)
        groups: dict[str, list[int]] = {}
        for index in rng.permutation(len(labels)).tolist():
            groups.setdefault(repr(labels[index]), []).append(index)
        line = [index for key in sorted(groups) for index in groups[key]]
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
    if len(named) == 1 and sizes[named[0]] not in (1.0,):
        named.append("test" if named[0] != "test" else "train")
    return sorted(named, key=("train", "validation", "test").index)


def _counts(sizes: Mapping[str, float | None], total: int) -> dict[str, int]:
    names = split_names(sizes)
    counts = {}
    for name in names:
        size = sizes[name]
        if size is not None:
            counts[name] = round(size * total) if isinstance(size, float) else int(size)
    shares = [size for size in sizes.values() if isinstance(size, float)]
    rest = total - sum(counts.values())
    for name in names:
        if name not in counts:
            counts[name] = rest
            rest = 0
    if counts and len(shares) == len(counts) and abs(sum(shares) - 1.0) < 1e-9:
        counts[names[0]] += rest  # rounding
        rest = 0
    if rest < 0 or any(count < 0 for count in counts.values()):
        raise DefinitionError(f"splits: the sizes {dict(sizes)} exceed the {total} rows.")
    return {name: counts[name] for name in names}
