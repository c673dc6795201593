"""A teacher's answers to texts, kept in files and found again text by text, whichever student asks."""

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
    """Logits of one teacher, in files of some thousand texts each, which appear complete or not at all.

    What decides an answer besides its text (the teacher, where it cuts a text) is in the folder's name: the caller
    chooses it. Files are read through the memory map. Processes may share a folder: at worst both compute the same.

    Args:
        folder: Where the files are.
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
        """Returns the answers to texts, asking for those that are not there yet and keeping them at once.

        Args:
            texts: The texts, read a portion at a time.
            ask: Returns the teacher's logits [texts, classes] of some texts.
            portion: Most texts to ask for at once, and so to lose when the process is killed.
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
    """Answers to the rows of a dataset, read from their files when they are needed.

    Args:
        files: Tables of answers.
        places: For each row the number of its file and its place there [rows, 2].
    """

    def __init__(self, files: Sequence[Array], places: Array) -> None:
        self._files = list(files)
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Returns the answers to some rows [rows, classes], fp32 on the rows' device."""
        found = [self._files[file]["logits"][place] for file, place in self._places[rows.cpu().numpy()]]
        return torch.from_numpy(np.stack(found)).to(rows.device)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
