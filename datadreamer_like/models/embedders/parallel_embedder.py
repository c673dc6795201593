"""One embedder on several devices or servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

from datadreamer_like.errors import DefinitionError

from ..task_models.parallel_task_model import ParallelTaskModel
from .embedder import Embedder, Vector


class ParallelEmbedder(ParallelTaskModel[Vector], Embedder):
    """The same embedder several times, such as on two GPUs: each embeds its share of a batch, all at once.

    Give `batch_size` as many times as you would for one of them. Cached vectors are those of one of them alone.

    Args:
        *embedders: The embedders, equal but for their devices.

    Raises:
        DefinitionError: There is none, or they differ, so that their vectors could not be compared.
        ArgumentTypeError: One of them is not an embedder.

    Example:
        >>> gpus = [SentenceTransformersEmbedder("all-MiniLM-L6-v2", device=gpu) for gpu in (0, 1)]  # doctest: +SKIP
        >>> ParallelEmbedder(*gpus).run(texts, batch_size=512)  # doctest: +SKIP
    """

    kind: ClassVar[type[Embedder]] = Embedder

    def __init__(self, *embedders: Embedder) -> None:
        super().__init__(*embedders)

    def compute(self, texts: Sequence[str], **asks: Any) -> list[Vector]:
        """Embeds a batch, each embedder its share.

        Raises:
            DefinitionError: Their vectors differ in length.
        """
        vectors = super().compute(texts, **asks)
        lengths = sorted({len(vector) for vector in vectors})
        if len(lengths) > 1:
            raise DefinitionError(
                f"The embedders of {self.display_name} give vectors of {lengths} numbers; they must all be one model."
            )
        return vectors

    @property
    def dims(self) -> int:
        """Length of the vectors."""
        return cast("Embedder", self.task_models[0]).dims
