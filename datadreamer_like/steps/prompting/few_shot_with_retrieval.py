"""Few-shot prompting with the examples that are most similar to each input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datadreamer_like.errors import ModelError
from datadreamer_like.graph.output import Batch
from datadreamer_like.models.embedders.embedder import Embedder
from datadreamer_like.models.retrievers.embedding_retriever import EmbeddingRetriever
from datadreamer_like.models.task_models.task_model import Computed

from ..base.columns import columns_together
from ..base.row_answers import Questions, RowAnswers
from .few_shot_prompt import FewShotPrompt
from .prompt_step import RowPrompt


class FewShotPromptWithRetrieval(FewShotPrompt):
    """Shows an LLM the examples whose inputs are most similar to each input, then that input.

    Inputs and outputs are those of `FewShotPrompt`. Further args: `embedder`, which compares inputs, and `k`, the
    number of examples (5). The most similar come first, and are kept if not all fit.
    """

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        self.register_arg("embedder", type=Embedder, help="The model that compares inputs.")
        self.register_arg("k", required=False, default=5, type=int, help="How many examples to take.")

    def input_batches(self) -> Iterator[Batch]:
        """Yields the inputs, each with its most similar examples."""
        corpus, examples, positions = self.examples()
        retriever = EmbeddingRetriever(corpus, self.args["embedder"])
        inputs = columns_together({"inputs": self._inputs["inputs"]}, f'"{self.name}"')
        asked = RowAnswers(Questions(batch["inputs"], batch) for batch in inputs)
        for _, batch, found in asked.joined(retriever.results(asked.values(), k=self.args["k"])):
            rows = [_indices(result) for result in found]
            texts = [[examples[index] for index in indices] for indices in rows]
            yield {
                **batch,
                "examples": [_error(result) or text for result, text in zip(found, texts, strict=True)],
                "example_rows": [[positions[index] for index in indices] for indices in rows],
            }

    def prompt(self, value: Any, examples: Any) -> RowPrompt:
        """Returns the prompt for one input, or the error of its retrieval."""
        return examples if isinstance(examples, ModelError) else super().prompt(value, examples)


def _error(result: Computed | None) -> ModelError | None:
    return None if result is None else result.error


def _indices(result: Computed | None) -> list[int]:
    return [] if result is None or result.error is not None else result.value["indices"]
