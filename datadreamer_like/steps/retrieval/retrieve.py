"""The texts that are most like each query."""

from __future__ import annotations

from datadreamer_like.models.retrievers.retriever import Retriever

from ..base.model_step import ModelStep


class Retrieve(ModelStep):
    """Finds the texts that are most like each query.

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
        self.register_output("results", help="Indices, texts and scores of what was found.")
