"""Embedding texts, and comparing vectors."""

from __future__ import annotations

from itertools import compress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datadreamer_like.errors import DataError, DefinitionError, did_you_mean
from datadreamer_like.graph.output import Batch
from datadreamer_like.models.embedders.embedder import Embedder

from ..base.model_step import ModelStep, check_options
from ..base.step import Step


class Embed(ModelStep):
    """Embeds texts.

    Inputs: `texts`. Args: `embedder`, `truncate` (False: a text that is too long fails its row), `instruction`, `lazy`,
    and the options of `embedder.run`. Outputs: `texts`, `embeddings` (vectors; None for a row that failed).

    Example:
        >>> texts = {"texts": rows.output["text"]}  # doctest: +SKIP
        >>> vectors = Embed("Vectors", inputs=texts, args={"embedder": embedder})  # doctest: +SKIP
    """

    model_arg = "embedder"
    answers_to = ("texts", "embeddings")

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("texts", help="What to embed.")
        self.register_model(Embedder, "The model that embeds.")
        self.register_arg("truncate", required=False, default=False, type=bool, help="Cut texts that are too long.")
        self.register_arg("instruction", required=False, type=str, help="Instruction for the embedding model.")
        self.register_output("texts", help="The texts.")
        self.register_output("embeddings", help="Their vectors.")


class CosineSimilarity(Step):
    """Computes the cosine similarity of two columns, row by row.

    Inputs: `a`, `b`: vectors, or texts if an `embedder` is given. Args: `similarity_batch_size`, `device`, `embedder`,
    `truncate`, `lazy`, and the options of `embedder.run`. Outputs: `a`, `b`, `similarities` (from -1 to 1; 0 where a
    vector has no direction, None where a value is missing).

    `similarity_batch_size` and `device` are accepted for DataDreamer scripts and ignored: computing the products is
    faster than moving them to a device.

    Example:
        >>> texts = {"a": rows.output["a"], "b": rows.output["b"]}  # doctest: +SKIP
        >>> alike = CosineSimilarity("Alike", inputs=texts, args={"embedder": embedder})  # doctest: +SKIP
    """

    takes_options = True
    neutral_args: ClassVar[frozenset[str]] = ModelStep.neutral_args | {"similarity_batch_size", "device"}

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("a", help="Vectors, or texts.")
        self.register_input("b", help="Vectors, or texts.")
        self.register_arg("similarity_batch_size", required=False, type=int, help="Ignored.")
        self.register_arg("device", required=False, help="Ignored.")
        self.register_arg("embedder", required=False, type=Embedder, help="The model, if the inputs are texts.")
        self.register_arg("truncate", required=False, default=False, type=bool, help="Cut texts that are too long.")
        self.register_arg("lazy", required=False, default=False, type=bool, help="Generate rows lazily; save nothing.")
        self.register_output("a", help="As it came in.")
        self.register_output("b", help="As it came in.")
        self.register_output("similarities", help="Cosines of the angles.")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        return {"inputs": {"a": [[1.0, 0.0], [0.6, 0.8]], "b": [[0.0, 1.0], [0.6, 0.8]]}, "args": {}}

    def process(self, batch: Batch) -> Batch:
        """Compares the two columns."""
        return {**batch, "similarities": _cosines(*self._vectors(batch["a"], batch["b"]))}

    def _vectors(self, a: list[Any], b: list[Any]) -> tuple[list[Any], list[Any]]:
        embedder = self.args["embedder"]
        if embedder is None:
            if any(isinstance(value, str) for value in (*a, *b)):
                raise DefinitionError(
                    f'"{self.name}": its inputs are texts. Give an embedder: args={{"embedder": ...}}.'
                )
            self._check_vectors({"a": a, "b": b})
            return a, b
        own = set(self._arg_specs) - {"truncate"}
        options = {name: value for name, value in self._args.items() if name not in own}
        texts = list(dict.fromkeys(text for text in (*a, *b) if text is not None))
        vectors = dict(zip(texts, embedder.run(texts, **options), strict=True))
        return [vectors.get(text) for text in a], [vectors.get(text) for text in b]

    def _check_vectors(self, inputs: dict[str, list[Any]]) -> None:
        """Refuses what is not a vector of numbers, and vectors of several lengths."""
        size: int | None = None
        for name, values in inputs.items():
            for value in values:
                if value is None:
                    continue
                is_vector = isinstance(value, list | tuple | np.ndarray) and len(value) > 0
                if not is_vector or not all(isinstance(part, int | float | np.number) for part in value[:1]):
                    raise DataError(f'"{self.name}": input "{name}" has {value!r:.100}; expected vectors of numbers.')
                if len(value) != (size := size or len(value)):
                    raise DataError(
                        f'"{self.name}": input "{name}" has a vector of {len(value)} numbers, and an earlier one has '
                        f"{size}. Use one embedder for both inputs."
                    )

    def configure(self) -> None:
        """Rejects arguments that neither the step nor its embedder takes."""
        embedder = self.args["embedder"]
        extra = [name for name in self._args if name not in self._arg_specs]
        if extra and embedder is None:
            raise DefinitionError(
                f'"{self.name}" has no argument "{extra[0]}"; without an embedder it takes: '
                f"{', '.join(self._arg_specs)}.{did_you_mean(extra[0], self._arg_specs)}"
            )
        if extra:
            check_options(self.name, self._arg_specs, self._args, embedder, "embedder")


def _cosines(a: list[Any], b: list[Any]) -> list[float | None]:
    whole = [x is not None and y is not None for x, y in zip(a, b, strict=True)]
    if not any(whole):
        return [None] * len(a)
    left, right = (np.array(list(compress(values, whole)), dtype=np.float64) for values in (a, b))
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = np.einsum("ij,ij->i", left, right)
    cosines = iter(np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0).tolist())
    return [next(cosines) if pair else None for pair in whole]
