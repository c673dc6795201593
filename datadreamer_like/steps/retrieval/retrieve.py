"""Retrieving the texts that are most similar to each query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datadreamer_like.graph.output import OutputDatasetColumn
from datadreamer_like.models.retrievers.retriever import Retriever

from ..base.lazy_rows import From
from ..base.model_step import ModelStep


class Retrieve(ModelStep):
    """Finds the texts that are most similar to each query.

    Inputs: `queries`. Args: `retriever`, `k` (5), `lazy`, and the options of `retriever.run`. Outputs: `queries`,
    `results` (`{"indices": [...], "texts": [...], "scores": [...]}`, the best first; None for a row that failed).
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
    """Returns the origin of retrieved documents; empty if the corpus is not a step's column.

    Args:
        retriever: The retriever.
        documents: For each row, positions in the corpus.
    """
    corpus = retriever.texts
    return [From(corpus, documents, role="document")] if isinstance(corpus, OutputDatasetColumn) else []
