"""Texts to vectors, and how alike two of them are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.dataset import Batch
from datadreamer_like.models import Embedder

from .asking import columns_together
from .model_step import ModelStep
from .step import Step
from .step_output import LazyRowBatches


class Embed(ModelStep):
    """Embeds texts.

    Inputs: `texts`. Args: `embedder`, `truncate` (False: a text that is too long fails its row), `instruction`, `lazy`,
    and the options of `embedder.run`. Outputs: `texts`, `embeddings` (vectors; None for a row that failed).
    """

    model_arg = "embedder"
    answers_to = ("texts", "embeddings")

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("texts", help="What to embed.")
        self.register_model(Embedder, "The model that embeds.")
        self.register_arg("truncate", required=False, default=False, type=bool, help="Cut texts that are too long.")
        self.register_arg("instruction", required=False, type=str, help="What the model is told to embed for.")
        self.register_output("texts", help="The texts.")
        self.register_output("embeddings", help="Their vectors.")


class CosineSimilarity(Step):
    """Tells how alike two columns are, row by row.

    Inputs: `a`, `b`: vectors, or texts if an `embedder` is given. Args: `similarity_batch_size`, `device`, `embedder`,
    `truncate`, `lazy`, and the options of `embedder.run`. Outputs: `a`, `b`, `similarities` (from -1 to 1; 0 where a
    vector has no direction, None where a value is missing).

    `similarity_batch_size` and `device` are accepted for DataDreamer scripts: the products are quicker to make than to
    move to a device.
    """

    neutral_args: ClassVar[frozenset[str]] = ModelStep.neutral_args | {"similarity_batch_size", "device"}

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("a", help="Vectors, or texts.")
        self.register_input("b", help="Vectors, or texts.")
        self.register_arg("similarity_batch_size", required=False, type=int, help="Changes nothing.")
        self.register_arg("device", required=False, help="Changes nothing.")
        self.register_arg("embedder", required=False, type=Embedder, help="Embeds the inputs if they are texts.")
        self.register_arg("truncate", required=False, default=False, type=bool, help="Cut texts that are too long.")
        self.register_arg("lazy", required=False, default=False, type=bool, help="Compare when the rows are asked for.")
        self.register_output("a", help="As it came in.")
        self.register_output("b", help="As it came in.")
        self.register_output("similarities", help="Cosines of the angles.")

    def run(self) -> LazyRowBatches:
        """Compares the two columns."""
        total = self._inputs["a"].num_rows
        return LazyRowBatches(self._compared, total_num_rows=total, save=not self.args["lazy"])

    def _compared(self) -> Iterator[Batch]:
        for batch in columns_together(self._inputs, f'"{self.name}"'):
            pairs = [(a, b) for a, b in zip(batch["a"], batch["b"], strict=True) if a is not None and b is not None]
            found = iter(self._similarities(pairs))
            similarities = [
                None if a is None or b is None else next(found)
                for a, b in zip(batch["a"], batch["b"], strict=True)
            ]
            yield {**batch, "similarities": similarities}

    def _similarities(self, pairs: list[tuple[Any, Any]]) -> list[float | None]:
        if not pairs:
            return []
        embedder = self.args["embedder"]
        if embedder is None:
            if isinstance(pairs[0][0], str):
                raise DefinitionError(
                    f'"{self.name}": its inputs are texts. Give an embedder: args={{"embedder": ...}}.'
                )
            return [_cosine(np.asarray(a), np.asarray(b)) for a, b in pairs]
        own = set(self._arg_specs) - {"truncate"}
        options = {name: value for name, value in self._args.items() if name not in own}
        vectors: Iterable[Any] = embedder.run([text for pair in pairs for text in pair], **options)
        given = iter(vectors)
        return [None if a is None or b is None else _cosine(a, b) for a, b in zip(given, given, strict=True)]

    def _takes_extra(self, what: str) -> bool:
        return what == "argument"

    def _checked_args(self, given: dict[str, Any]) -> dict[str, Any]:
        args = super()._checked_args(given)
        extra = [name for name in given if name not in self._arg_specs]
        if extra and args["embedder"] is None:
            raise DefinitionError(
                f'"{self.name}" has no argument "{extra[0]}"; without an embedder it takes: '
                f"{', '.join(self._arg_specs)}."
            )
        return args


def _cosine(a: Any, b: Any) -> float:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0
