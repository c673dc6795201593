"""The base of embedders, which turn texts into vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from typing_extensions import Unpack

from datadreamer_like.errors import DefinitionError, MalformedAnswer

from ..task_models.task_model import Computed, TaskModel, TextOptions, takes_text_options, values_of

Vector: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
"""One embedding: float32 array [dims]."""


class Embedder(TaskModel[Vector]):
    """A model that turns texts into vectors of `dims` numbers.

    A subclass writes `compute(texts, instruction=None) -> vectors [texts, dims]`, `count_tokens`, `model_max_length`
    and `dims`. Vectors are stored as 4 bytes per number.
    """

    icon = " 🧭 "

    def __init__(self, model_name: str, cache_folder_path: str | Path | None = None) -> None:
        super().__init__(cache_folder_path)
        self.model_name = str(model_name)

    @property
    def dims(self) -> int:
        """Length of the vectors."""
        raise NotImplementedError(f"{type(self).__name__} has no dims.")

    @takes_text_options
    def run(
        self,
        texts: Iterable[str],
        truncate: bool = False,
        instruction: str | None = None,
        *,
        normalize_embeddings: bool = False,
        **options: Unpack[TextOptions],
    ) -> Any:
        """Embeds texts as float32 arrays [dims], after the prefix `instruction`, if any; see `TaskModel.run`.

        With `normalize_embeddings` the vectors have length 1.
        """
        values = self.results(texts, truncate, instruction, normalize_embeddings=normalize_embeddings, **options)
        return values_of(values, options)

    def results(
        self,
        texts: Iterable[str],
        truncate: bool = False,
        instruction: str | None = None,
        *,
        normalize_embeddings: bool = False,
        **options: Any,
    ) -> Iterator[Computed]:
        """Yields results in the texts' order: the vector, or the error of a failed row; see `run`."""
        found = super().results(texts, truncate, asks={"instruction": instruction}, **options)
        return map(_normalized, found) if normalize_embeddings else found

    def fill(self, row: Computed, value: Vector) -> None:
        """Puts a vector into its result; one with a number that is not finite fails its row.

        Raises:
            DefinitionError: It is not a vector.
        """
        vector = np.asarray(value, dtype=np.float32)
        if vector.ndim != 1:
            raise DefinitionError(
                f"compute of {self.display_name} returned an array of shape {vector.shape} for a text; expected a "
                "vector."
            )
        if np.isfinite(vector).all():
            super().fill(row, vector)
        else:
            row.error = MalformedAnswer(
                f"The vector of {self.display_name} for this text is not finite. Check the text, and the dtype."
            )

    def encode_value(self, value: Vector) -> bytes:
        """Returns a vector as 4 bytes per number, little-endian."""
        return np.ascontiguousarray(value, dtype="<f4").tobytes()

    def decode_value(self, value: bytes) -> Vector:
        """Reads a stored vector."""
        return np.frombuffer(value, dtype="<f4").astype(np.float32)


def _normalized(result: Computed) -> Computed:
    length = 0.0 if result.value is None else float(np.linalg.norm(result.value))
    return replace(result, value=result.value / length) if length else result
