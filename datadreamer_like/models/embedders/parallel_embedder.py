"""One embedder on several devices or servers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from datadreamer_like.errors import ArgumentTypeError, DefinitionError
from datadreamer_like.graph.fingerprint import fingerprint

from .embedder import Embedder, Vector


class ParallelEmbedder(Embedder):
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

    def __init__(self, *embedders: Embedder) -> None:
        if not embedders:
            raise DefinitionError("ParallelEmbedder needs at least one embedder: ParallelEmbedder(one, other).")
        for embedder in embedders:
            if not isinstance(embedder, Embedder):
                raise ArgumentTypeError(f"ParallelEmbedder takes embedders, not {embedder!r:.100}.")
        if len({fingerprint(embedder) for embedder in embedders}) > 1:
            names = ", ".join(embedder.display_name for embedder in embedders)
            raise DefinitionError(
                f"ParallelEmbedder takes one model several times, not {names}: vectors of other models or "
                "options cannot be compared."
            )
        self.embedders = embedders
        first = self._source = embedders[0]
        super().__init__(first.model_name, first.cache_folder_path)

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns the same embedder twice, for tests and documentation."""
        return cls(model, model)

    def compute(self, texts: Sequence[str], **asks: Any) -> list[Vector]:
        """Embeds a batch, each embedder its share; returns float32 arrays [dims]."""
        share = -(-len(texts) // len(self.embedders))
        parts = [texts[start : start + share] for start in range(0, len(texts), share)]
        with ThreadPoolExecutor(len(parts), "datadreamer_like-parallel") as threads:
            found = threads.map(lambda pair: pair[0].compute(pair[1], **asks), zip(self.embedders, parts, strict=False))
            return [vector for part in found for vector in part]

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text."""
        return self.embedders[0].count_tokens(value)

    @property
    def model_max_length(self) -> int:
        """Maximum number of tokens of a text."""
        return self.embedders[0].model_max_length

    @property
    def dims(self) -> int:
        """Length of the vectors."""
        return self.embedders[0].dims

    @property
    def answers_name(self) -> str:
        """The class of the embedders."""
        return self.embedders[0].answers_name

    def unload_model(self) -> None:
        """Frees the memory of all embedders."""
        for embedder in self.embedders:
            embedder.unload_model()

    def __fingerprint__(self) -> Any:
        return self.embedders[0].__fingerprint__()
