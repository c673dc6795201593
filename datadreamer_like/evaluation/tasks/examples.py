"""Tokenized rows: token ids in one flat file on disk, and batches of rows of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

_VALUES = 1 << 20  # that are read at a time


class Ragged:
    """Sequences of different lengths in a file, of integers or another `dtype`, memory-mapped when read.

    Append inside a `with` block, read after it. An existing file is replaced.
    """

    def __init__(self, path: Path, dtype: type[np.generic] = np.int32) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.dtype = dtype
        self._ends = [0]
        self._file = path.open("wb")

    def extend(self, sequences: Sequence[Sequence[float]]) -> None:
        """Appends sequences."""
        for sequence in sequences:
            self._ends.append(self._ends[-1] + len(sequence))
        self._file.write(np.concatenate([np.asarray(s, dtype=self.dtype) for s in sequences]).tobytes())

    def __enter__(self) -> Ragged:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.starts = np.asarray(self._ends, dtype=np.int64)
        del self._ends
        self._map()

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the file too.
        return {name: value for name, value in vars(self).items() if name not in ("_file", "_flat")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    def _map(self) -> None:
        # An empty file cannot be mapped.
        self._flat = np.memmap(self.path, self.dtype, mode="r") if self.starts[-1] else np.zeros(0, self.dtype)

    @property
    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Length of each sequence."""
        return np.diff(self.starts)

    def highest(self) -> int:
        """Returns the highest value of all sequences; -1 without any."""
        parts = (self._flat[start : start + _VALUES] for start in range(0, len(self._flat), _VALUES))
        return max((int(part.max()) for part in parts), default=-1)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> np.ndarray[Any, Any]:
        return self._flat[self.starts[index] : self.starts[index + 1]]


def same_rows(first: Ragged | np.ndarray[Any, Any], second: Ragged | np.ndarray[Any, Any]) -> list[bool]:
    """Returns whether each row of two fields is the same."""
    return [np.array_equal(first[row], second[row]) for row in range(len(first))]


class Examples(Dataset[dict[str, Any]]):
    """Tokenized rows of one task: the values of each row by name, and its index as `row`.

    Rows are batched by `lengths` in tokens; `dropped`, the indices of rows among all that were read, were left out
    because no part of their answers fits.
    """

    def __init__(
        self,
        fields: Mapping[str, Ragged | np.ndarray[Any, Any]],
        lengths: np.ndarray[Any, Any],
        dropped: Sequence[int] = (),
    ) -> None:
        self.fields = dict(fields)
        self.lengths = lengths
        self.dropped = dropped

    @cached_property
    def numbers(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Index of each row among all rows that were read."""
        return np.delete(np.arange(len(self.lengths) + len(self.dropped)), np.asarray(self.dropped, dtype=np.int64))

    def highest_token(self) -> int:
        """Returns the highest token id of all rows; -1 without any."""
        tokens = [each for each in self.fields.values() if isinstance(each, Ragged) and each.dtype is np.int32]
        return max((each.highest() for each in tokens), default=-1)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"row": index, **{name: values[index] for name, values in self.fields.items()}}


class Paired(Examples):
    """Rows with two answers each: those of `first`, and under `written` the same row of `second`.

    Only rows that both have are kept.
    """

    def __init__(self, first: Examples, second: Examples) -> None:
        _, ours, theirs = np.intersect1d(first.numbers, second.numbers, return_indices=True)
        total = len(first) + len(first.dropped)
        kept = first.numbers[ours]
        dropped = np.setdiff1d(np.arange(total), kept).tolist()
        super().__init__({}, np.maximum(first.lengths[ours], second.lengths[theirs]), dropped)
        self._pairs = first, ours, second, theirs

    def highest_token(self) -> int:
        """Returns the highest token id of all rows; see `Examples.highest_token`."""
        first, _, second, _ = self._pairs
        return max(first.highest_token(), second.highest_token())

    def __getitem__(self, index: int) -> dict[str, Any]:
        first, ours, second, theirs = self._pairs
        written = {**second[int(theirs[index])], "row": index}
        return {**first[int(ours[index])], "row": index, "written": written}


class ShuffledBatches(Sampler[list[int]]):
    """Random batches of rows of similar length, to reduce padding; `lengths` are the rows' numbers of tokens.

    Rows are shuffled, sorted by length within chunks of fifty batches, and the batches shuffled again. The order
    depends only on the seed and the epoch, so a resumed training run sees the same batches.
    """

    drop_last = False

    def __init__(self, lengths: np.ndarray[Any, Any], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that decides the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths))
        portion = 50 * self.batch_size
        batches = []
        for start in range(0, len(order), portion):
            rows = order[start : start + portion]
            rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        # The batch that needs the most memory comes first, so that too large a batch size fails at once.
        longest = int(np.argmax([self.lengths[batch].max() for batch in batches]))
        rest = [index for index in range(len(batches)) if index != longest]
        for index in [longest, *random.permutation(rest).tolist()]:
            yield batches[index].tolist()


def sorted_batches(lengths: np.ndarray[Any, Any], batch_size: int) -> list[list[int]]:
    """Returns batches of rows sorted by length, longest first, for evaluation."""
    order: list[int] = np.argsort(-lengths, kind="stable").tolist()
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
