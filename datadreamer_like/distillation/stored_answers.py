"""A teacher's logits, stored in files by text and reused for all students."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


class StoredAnswers:
    """Logits of one teacher, in files of a few thousand texts each, written atomically and memory-mapped.

    Everything else that decides the logits (the teacher, its maximum length) must be part of the folder's name, which
    the caller chooses. Processes may share a folder: at worst they compute the same logits twice.

    Args:
        folder: The folder of the files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files: list[Array] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        for path in sorted(self.folder.glob("*.npy")):
            self._open(path)

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, texts: Iterable[str], ask: Callable[[Sequence[str]], Tensor], *, portion: int = 2048) -> StoredRows:
        """Returns the logits for texts; computes and stores the missing ones.

        Args:
            texts: The texts, read in chunks.
            ask: Computes the teacher's logits [texts, classes] for some texts.
            portion: Maximum number of texts per chunk; a killed process loses at most one chunk.
        """
        texts, places = iter(texts), []
        while part := list(islice(texts, portion)):
            keys = [_key(text) for text in part]
            new = {key: text for key, text in zip(keys, part, strict=True) if key not in self._places}
            if new:
                self._keep(list(new), ask(list(new.values())))
            places += [self._places[key] for key in keys]
        return StoredRows(self._files, np.asarray(places, dtype=np.int64).reshape(-1, 2))

    def _keep(self, keys: list[bytes], logits: Tensor) -> None:
        table = np.empty(len(keys), dtype=[("key", "V16"), ("logits", "<f4", logits.shape[1:])])
        table["key"] = np.frombuffer(b"".join(keys), dtype="V16")
        table["logits"] = logits.float().cpu().numpy()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{hashlib.blake2b(b''.join(keys), digest_size=16).hexdigest()}.npy"
        draft = path.with_suffix(f".{secrets.token_hex(4)}.draft")
        with draft.open("wb") as file:
            np.save(file, table)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        self._open(path)

    def _open(self, path: Path) -> None:
        table = np.load(path, mmap_mode="r")
        for row, key in enumerate(table["key"]):
            self._places.setdefault(key.tobytes(), (len(self._files), row))
        self._files.append(table)


class StoredRows:
    """Logits for the rows of a dataset, read from their files lazily.

    Args:
        files: Tables of logits.
        places: File index and position in the file for each row [rows, 2].
    """

    def __init__(self, files: Sequence[Array], places: Array) -> None:
        self._files = list(files)
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Returns the logits of some rows [rows, classes], fp32 on the device of `rows`."""
        found = [self._files[file]["logits"][place] for file, place in self._places[rows.cpu().numpy()]]
        return torch.from_numpy(np.stack(found)).to(rows.device)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
