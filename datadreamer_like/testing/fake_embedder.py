"""An embedder that needs no model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from datadreamer_like.errors import check_number
from datadreamer_like.models.embedders.embedder import Embedder
from datadreamer_like.models.words import words_of


class FakeEmbedder(Embedder):
    """Embeds texts without a model: texts that share words are close to each other, and the same in every run.

    Args:
        vector: A function from a text to its vector [dims]; by default each word, in lower case, adds 1 to one of the
            dimensions, and the vector has length 1.
        dims: Length of the vectors.
        max_length: Maximum number of words of a text.

    Example:
        >>> embedder = FakeEmbedder()
        >>> red, also, blue = embedder.run(["a red ball", "red ball", "deep sea"])
        >>> bool(red @ also > red @ blue)
        True
    """

    def __init__(
        self, vector: Callable[[str], Sequence[float]] | None = None, *, dims: int = 64, max_length: int = 1_000_000
    ) -> None:
        super().__init__("fake")
        check_number(dims, "dims", least=1, whole=True)
        check_number(max_length, "max_length", least=1, whole=True)
        self._vector = vector
        self._max_length = max_length
        self._dims = dims

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns the default, for tests and documentation."""
        return cls()

    def identity(self) -> dict[str, Any]:
        """Returns what decides the vectors."""
        return {"vector": self._vector, "dims": self._dims, "max_length": self._max_length}

    @property
    def dims(self) -> int:
        """Length of the vectors."""
        return self._dims

    @property
    def model_max_length(self) -> int:
        """Maximum number of words of a text."""
        return self._max_length

    def count_tokens(self, value: str) -> int:
        """Returns the number of words."""
        return len(words_of(value))

    def compute(self, texts: Sequence[str], instruction: str | None = None, **asks: Any) -> Any:
        """Returns the vectors [texts, dims]."""
        return np.array([self._embedded(f"{instruction or ''}{text}") for text in texts], dtype=np.float32)

    def _embedded(self, text: str) -> Any:
        if self._vector is not None:
            return np.asarray(self._vector(text), dtype=np.float32)
        counts = np.zeros(self._dims, dtype=np.float32)
        for word in words_of(text.lower()):
            counts[zlib.crc32(word.encode()) % self._dims] += 1
        return counts / max(float(np.linalg.norm(counts)), 1.0)
