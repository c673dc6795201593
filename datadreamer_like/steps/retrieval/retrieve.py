"""Retrieving the texts that are most similar to each query."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from datadreamer_like.graph.origin import From
from datadreamer_like.graph.output import Batch, OutputDatasetColumn
from datadreamer_like.models.retrievers.retriever import Retriever

from ..base.model_step import ModelStep
from ..base.row_answers import Questions, RowAnswers


class Retrieve(ModelStep):
    """Finds the texts that are most similar to each query.

    Inputs: `queries`. Args: `retriever`, `k` (5), `lazy`, and the options of `retriever.run`. Outputs: `queries`,
    `results` (`{"indices": [...], "texts": [...], "scores": [...]}`, the best first; None for a row that failed).

    Example:
        >>> args = {"retriever": retriever, "k": 2}  # doctest: +SKIP
        >>> found = Retrieve("Found", inputs={"queries": questions.output["text"]}, args=args)  # doctest: +SKIP
    """

    model_arg = "retriever"
    answers_to = ("queries", "results")

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("queries", help="What to look for.")
        self.register_model(Retriever, "Finds texts for a query.")
        self.register_arg("k", required=False, default=5, type=int, help="How many texts to find.")
        self.register_output("queries", help="The queries.")
        self.register_output("results", help="Indices, texts and scores of the texts found.")

    def origin(self, results: list[Any]) -> Sequence[From]:
        """Returns the queries' rows, and the documents found for each."""
        documents = [[] if result is None else result["indices"] for result in results]
        return [*super().origin(results), *from_corpus(self.args["retriever"], documents)]


def from_corpus(retriever: Retriever, documents: Sequence[Sequence[int]]) -> list[From]:
    """Returns the origin of rows from the positions of their documents; none if the corpus is not a step's column."""
    corpus = retriever.texts
    return [From(corpus, documents, role="document")] if isinstance(corpus, OutputDatasetColumn) else []


def retrieved(
    batches: Iterable[Batch], query: str, retriever: Retriever, k: int
) -> Iterator[tuple[Batch, list[Any], list[list[int]]]]:
    """Yields batches with the texts found for each row's `query`, and their positions in the corpus.

    A row without a query has None instead of texts; one that failed has its error.
    """
    rows = RowAnswers(Questions(batch[query], batch) for batch in batches)
    for _, batch, results in rows.joined(retriever.results(rows.values(), k=k)):
        values = [None if result is None else result.error or result.value["texts"] for result in results]
        found = [[] if result is None or result.error else result.value["indices"] for result in results]
        yield batch, values, found
