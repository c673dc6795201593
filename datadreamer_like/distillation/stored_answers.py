"""A teacher's logits, stored by text and reused for all students."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datadreamer_like.errors import StorageError
from datadreamer_like.storage.answers import AnswerStore

from .teacher import check_logits, named_text


class StoredAnswers:
    """Logits of one teacher, in an answer store that processes may share: at worst they compute the same logits twice.

    Everything else that decides the logits (the teacher, its maximum length) must be part of the folder's name, which
    the caller chooses.
    """

    def __init__(self, folder: str | Path) -> None:
        self.store = AnswerStore(Path(folder) / "logits.sqlite")

    def __del__(self) -> None:
        if hasattr(self, "store"):  # not if opening it failed
            self.store.close()

    def __len__(self) -> int:
        return len(self.store)

    def rows(self, texts: Iterable[str], ask: Callable[[Sequence[str]], Tensor], *, portion: int = 2048) -> StoredRows:
        """Returns the logits for texts; computes the missing ones with `ask` ([texts, classes]) and stores them.

        Texts are read in chunks of `portion` texts; a killed process loses at most one chunk. Logits that are NaN or
        +∞ raise `DataError` and are not stored.
        """
        texts, keys = iter(texts), bytearray()
        while part := list(islice(texts, portion)):
            found = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in part]
            known = self.store.get_many(found)
            new = {key: text for key, text, value in zip(found, part, known, strict=True) if value is None}
            if new:
                asked = list(new.values())
                logits = ask(asked).float().cpu()
                check_logits(logits, named=named_text(asked))  # a value that is stored is never asked again
                rows = zip(new, logits.numpy(), strict=True)
                self.store.put_many([(key, row.tobytes()) for key, row in rows])
            keys += b"".join(found)
        return StoredRows(self, np.frombuffer(keys, dtype="V16"))


class StoredRows:
    """Logits for the rows of a dataset, read lazily by the keys of their texts: V16 [rows]."""

    def __init__(self, answers: StoredAnswers, keys: np.ndarray[Any, Any]) -> None:
        self._answers, self._keys = answers, keys

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that trains on another device reads no store.
        return _CopiedRows, (self[torch.arange(len(self._keys))],)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Returns the logits of some rows [rows, classes], fp32 on the device of `rows`."""
        values = self._answers.store.get_many([key.tobytes() for key in self._keys[rows.cpu().numpy()]])
        found = [value for value in values if value is not None]
        if len(found) < len(values):
            raise StorageError(
                f"{self._answers.store.path} has lost the logits of {len(values) - len(found)} of {len(values)} rows "
                "since they were stored. Leave the file alone during a run, and run again: they are computed again."
            )
        return torch.frombuffer(bytearray(b"".join(found)), dtype=torch.float32).view(len(found), -1).to(rows.device)


class _CopiedRows:
    """The logits for the rows of a dataset, in memory: fp32 [rows, classes]."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self._logits[rows.cpu()].to(rows.device)
