"""Inputs answered after the pattern of the examples that are most like them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datadreamer_like.models.embedders.embedder import Embedder
from datadreamer_like.models.retrievers.embedding_retriever import EmbeddingRetriever

from ..base.row_answers import Portion, answered, columns_together
from .few_shot_prompt import FewShotPrompt


class FewShotPromptWithRetrieval(FewShotPrompt):
    """Shows an LLM the examples whose inputs are most alike each input, then that input.

    Inputs and outputs are those of `FewShotPrompt`. Further args: `embedder`, which tells what is alike, and `k`, how
    many examples to take (5). The most alike stand first, and are kept where not all fit.
    """

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        self.register_arg("embedder", type=Embedder, help="The model that tells which examples are alike.")
        self.register_arg("k", required=False, default=5, type=int, help="How many examples to take.")

    def prompted(self) -> Iterator[Portion]:
        """Yields each input after the examples that are most alike."""
        corpus, examples = self.examples()
        retriever = EmbeddingRetriever(corpus, self.args["embedder"])
        inputs = columns_together({"inputs": self._inputs["inputs"]}, f'"{self.name}"')

        def retrieve(queries: Iterator[Any]) -> Iterator[Any]:
            yield from retriever.run(queries, k=self.args["k"], return_generator=True)

        index = 0
        for found, batch in answered(((batch["inputs"], batch) for batch in inputs), retrieve):
            prompts = []
            for value, result in zip(batch["inputs"], found, strict=True):
                alike = [examples[row] for row in result["indices"]] if result is not None else []
                prompts.append(self.prompt(index, value, alike))
                index += 1
            yield prompts, {**batch, "prompts": prompts}
