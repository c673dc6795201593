"""One retriever on several devices or servers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Self

from datadreamer_like.errors import DefinitionError, ModelError
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.threads import Task

from ..task_models.task_model import TextRun
from .retriever import QUERIES_AT_ONCE, Found, Retriever, check_retrievers


class ParallelRetriever(Retriever):
    """The same retriever several times, such as with embedders on two GPUs: each searches for its share of queries.

    Results are those of one of them alone, and found again as such.

    Args:
        *retrievers: The retrievers, equal but for their devices.

    Raises:
        DefinitionError: There is none, or they differ.
        ArgumentTypeError: One of them is not a retriever.

    Example:
        >>> gpus = [SentenceTransformersEmbedder("all-MiniLM-L6-v2", device=gpu) for gpu in (0, 1)]  # doctest: +SKIP
        >>> ParallelRetriever(*(EmbeddingRetriever(texts, gpu) for gpu in gpus)).run(queries)  # doctest: +SKIP
    """

    def __init__(self, *retrievers: Retriever) -> None:
        check_retrievers(retrievers, type(self).__name__)
        if not retrievers:
            raise DefinitionError("ParallelRetriever needs at least one retriever: ParallelRetriever(one, other).")
        if len({fingerprint(retriever) for retriever in retrievers}) > 1:
            names = ", ".join(retriever.display_name for retriever in retrievers)
            raise DefinitionError(
                f"ParallelRetriever takes one retriever several times, not {names} with other texts or options. Join "
                "different ones by HybridRetriever."
            )
        first = self._source = retrievers[0]
        super().__init__(first.texts, first.cache_folder_path)
        self.retrievers = retrievers
        self.model_name = first.model_name

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns the same retriever twice, for tests and documentation."""
        from .embedding_retriever import EmbeddingRetriever

        return cls(EmbeddingRetriever.example(model), EmbeddingRetriever.example(model))

    @property
    def index(self) -> Any:
        """The index of the first retriever."""
        return self.retrievers[0].index

    def search(self, queries: Iterable[str], k: int, run: TextRun) -> Iterator[Found | ModelError]:
        """Yields positions and scores of up to `k` texts for each query; each retriever searches for a share."""
        remaining = iter(queries)
        while portion := list(islice(remaining, QUERIES_AT_ONCE * len(self.retrievers))):
            share = -(-len(portion) // len(self.retrievers))
            shares = [portion[start : start + share] for start in range(0, len(portion), share)]
            tasks = [
                Task(partial(retriever.found_for, part, k, run), "datadreamer_like-parallel")
                for retriever, part in zip(self.retrievers, shares, strict=False)
            ]
            for task in tasks:
                yield from task.result()

    def unload_model(self) -> None:
        """Frees the memory of all retrievers."""
        for retriever in self.retrievers:
            retriever.unload_model()

    def __fingerprint__(self) -> Any:
        return self.retrievers[0].__fingerprint__()
