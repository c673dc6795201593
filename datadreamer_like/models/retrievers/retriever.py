"""The base of retrievers, which find texts of a corpus for queries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from typing_extensions import Unpack

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, EmptyDataset, ModelError, check_number
from datadreamer_like.graph.lazy_table import with_positions
from datadreamer_like.graph.node import Node
from datadreamer_like.graph.output import OutputDatasetColumn, OutputIterableDatasetColumn
from datadreamer_like.graph.positions import by_position, defaults_of

from ..calls.options import BATCHING, check_is_list
from ..model import Model
from ..task_models.task_model import Computed, TextOptions, TextRun, values_of

Corpus: TypeAlias = OutputDatasetColumn | OutputIterableDatasetColumn | Sequence[str]
"""Texts: a step's column, or a list. A lazy column is written to a temporary table on first use."""

Found: TypeAlias = tuple[list[int], list[float]]
"""Positions in the corpus and their scores, best first."""


class Retrieved(TypedDict):
    """The texts found for one query, best first, with their positions in the corpus; higher scores are better."""

    indices: list[int]
    texts: list[str]
    scores: list[float]


QUERIES_AT_ONCE = 1_024
"""Queries that are searched for together, since an index answers many faster than each alone."""


class Retriever(Model):
    """Finds texts of a corpus. A subclass writes `search` and `identity`.

    Steps that take a retriever take any: by embeddings, by words, a fusion of several, or with a reranker.

    Raises:
        EmptyDataset: The corpus has no texts.
        ArgumentTypeError: The corpus has no random access.
    """

    icon = " 🔎 "

    def __init__(self, texts: Corpus, cache_folder_path: str | Path | None = None) -> None:
        if isinstance(texts, OutputIterableDatasetColumn):
            texts = with_positions(texts)
        elif isinstance(texts, str) or not hasattr(texts, "__getitem__") or not hasattr(texts, "__len__"):
            raise ArgumentTypeError(
                f"The texts of a retriever must be a column of a step, or a list of texts, not {type(texts).__name__}."
            )
        elif len(texts) == 0:
            raise EmptyDataset("The corpus of a retriever has no texts. Check the step that it comes from.")
        super().__init__(cache_folder_path)
        self.texts: OutputDatasetColumn | Sequence[str] = texts

    # What a subclass writes.

    @property
    def index(self) -> Any:
        """The index of the corpus; made, or loaded from the cache, on first use."""
        raise NotImplementedError(f"{type(self).__name__} has no index.")

    def search(self, queries: Iterable[str], k: int, run: TextRun) -> Iterator[Found | ModelError]:
        """Yields positions and scores of up to `k` texts for each query, best first, or its error."""
        raise NotImplementedError(f"{type(self).__name__} does not implement search.")

    def identity(self) -> dict[str, Any]:
        """Returns everything that determines a result, except class and query."""
        return {"texts": self.texts}

    # What it has of this class.

    def found_for(self, queries: Sequence[str], k: int, run: TextRun) -> list[Found | ModelError]:
        """Returns what `search` yields for queries.

        Raises:
            DefinitionError: That is not one result for each.
        """
        found = list(self.search(queries, k, run))
        if len(found) != len(queries):
            raise DefinitionError(
                f"search of {type(self).__name__} yields {len(found)} results for {len(queries)} queries; expected one "
                "for each."
            )
        return found

    # What users call.

    @by_position(defaults_of(BATCHING, TextRun) | {"total_num_queries": None, "return_generator": False})
    def run(
        self,
        queries: Iterable[str],
        k: int = 5,
        *,
        total_num_queries: int | None = None,
        **options: Unpack[TextOptions],
    ) -> Any:
        """Finds the `k` best texts for each query, in the queries' order; all of them if the corpus has fewer.

        Returns a list, or a generator where `return_generator=True`, of `Retrieved`; None for a query that failed.
        `queries` is any iterable, with bounded read-ahead; `total_num_queries` is their number, if it has no length.
        For `options` see `TextOptions`.
        """
        if total_num_queries is not None:
            options["total_num_texts"] = total_num_queries
        return values_of(self.results(queries, k, **options), options)

    def results(self, queries: Iterable[str], k: int = 5, **options: Any) -> Iterator[Computed]:
        """Returns an iterator in the queries' order: a `Retrieved`, or the error of a failed row; see `run`."""
        check_number(k, "k", 1, whole=True)
        check_is_list(queries)
        search = self.search(queries, min(int(k), len(self.texts)), TextRun.from_options(options))
        return (
            Computed(error=found)
            if isinstance(found, ModelError)
            else Computed(Retrieved(indices=found[0], texts=self.texts_at(found[0]), scores=found[1]))
            for found in search
        )

    def texts_at(self, positions: Sequence[int]) -> list[str]:
        """Returns the texts at positions in the corpus."""
        if isinstance(self.texts, OutputDatasetColumn):
            return list(self.texts[positions]) if positions else []
        return [self.texts[position] for position in positions]

    @property
    def parents(self) -> list[Node]:
        """The node that the corpus comes from, if it is a step's."""
        return [self.texts.step] if isinstance(self.texts, OutputDatasetColumn) else []


def check_retrievers(retrievers: Iterable[object], what: str) -> None:
    """Raises `ArgumentTypeError` if one of the retrievers that `what` takes is something else."""
    for retriever in retrievers:
        if not isinstance(retriever, Retriever):
            raise ArgumentTypeError(f"{what} takes retrievers, such as BM25Retriever(texts), not {retriever!r:.100}.")
