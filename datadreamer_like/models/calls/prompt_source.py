"""Reading prompts in chunks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from typing import Generic, TypeVar

P = TypeVar("P")

# Target time of reading a chunk of prompts: shorter chunks add overhead, longer ones leave slots idle.
_READ_SECONDS = 0.02


class PromptSource(Generic[P]):
    """Reads prompts in chunks: large ones from a fast iterable, single prompts from a slow one."""

    def __init__(self, prompts: Iterable[P]) -> None:
        self._iterator = iter(prompts)
        self.size = 1
        self.slow = False
        self.ended = False

    def read(self, room: int, most: int) -> list[P]:
        """Returns the next prompts, at most `room`; the next chunk has at most `most`."""
        size = min(self.size, room)
        started = time.monotonic()
        chunk = list(islice(self._iterator, size))
        took = time.monotonic() - started
        self.ended = len(chunk) < size
        self.slow = size == 1 and took > _READ_SECONDS
        if took > _READ_SECONDS / 2:
            self.size = max(1, min(int(size * _READ_SECONDS / took), most))
        elif size == self.size:
            self.size = min(2 * size, most)
        return chunk
