"""Retrieval-augmented generation: retrieved texts in the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from datadreamer_like.errors import ModelError
from datadreamer_like.graph.output import Batch
from datadreamer_like.models.retrievers.retriever import Retriever
from datadreamer_like.models.task_models.task_model import Computed

from ..base.lazy_rows import From
from ..base.row_answers import AnsweredRows, Questions, RowAnswers
from ..retrieval.retrieve import from_corpus
from .prompt_step import PromptStep, RowPrompt
from .prompt_text import labelled, shown_positions


class RAGPrompt(PromptStep):
    """Puts retrieved texts before each prompt.

    Inputs: `prompts`. Args: `retriever`, `k` (5), `retrieved_text_label`, `prompt_label`, `max_new_tokens`, `sep`,
    `min_in_context_retrieved_texts`, `max_in_context_retrieved_texts`, and those of `PromptStep`. Outputs: `prompts`
    (as sent), `generations`, and a column for each property of `output_schema`.

    Texts are shown best first, as many as fit the model's context with `max_new_tokens` left for the answer. A row
    fails, and holds None, if `min_in_context_retrieved_texts` do not fit.
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("prompts", help="The questions.")
        self.register_llm()
        self.register_arg("retriever", type=Retriever, help="Finds texts for a question.")
        self.register_arg("k", required=False, default=5, type=int, help="How many texts to retrieve.")
        self.register_arg(
            "retrieved_text_label", required=False, default="Document:", type=str, help="Before each text."
        )
        self.register_arg("prompt_label", required=False, default="Question:", type=str, help="Before the question.")
        self.register_arg("max_new_tokens", required=False, type=int, help="Most tokens of an answer.")
        self.register_arg("sep", required=False, default="\n", type=str, help="Between texts and question.")
        self.register_arg("min_in_context_retrieved_texts", required=False, type=int, help="Fewest texts.")
        self.register_arg("max_in_context_retrieved_texts", required=False, type=int, help="Most texts.")
        self.register_prompt_outputs()

    def input_batches(self) -> Iterator[Batch]:
        """Yields the questions, each with its retrieval result."""
        rows = RowAnswers(Questions(batch["prompts"], batch) for batch in super().input_batches())
        for _, batch, found in rows.joined(self.args["retriever"].results(rows.values(), k=self.args["k"])):
            yield {**batch, "found": found}

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns each question after its retrieved texts."""
        return [self._prompt(*row) for row in zip(batch["prompts"], batch["found"], strict=True)]

    def origin(self, rows: AnsweredRows) -> Sequence[From]:
        """Returns the questions' rows, and the documents that each prompt shows."""
        found = [_found(result) for result in rows.rows["found"]]
        texts, positions = [one["texts"] for one in found], [one["indices"] for one in found]
        documents = shown_positions(rows.values, texts, positions)
        return [*super().origin(rows), *from_corpus(self.args["retriever"], documents)]

    def register_facts(self) -> None:
        """Adds the retriever to the card too."""
        super().register_facts()
        self.register_data_card("Retriever", self.args["retriever"].display_name)

    def _prompt(self, question: str, found: Computed | ModelError | None) -> RowPrompt:
        if found is None or isinstance(found, ModelError) or found.error is not None:
            return found.error if isinstance(found, Computed) else found
        label = self.args["retrieved_text_label"]
        return self.fitted(
            lambda: self.args["llm"].format_prompt(
                max_new_tokens=self.args["max_new_tokens"],
                in_context_examples=[labelled(label, text) for text in found.value["texts"]],
                end_instruction=labelled(self.args["prompt_label"], question),
                sep=self.args["sep"],
                min_in_context_examples=self.args["min_in_context_retrieved_texts"],
                max_in_context_examples=self.args["max_in_context_retrieved_texts"],
            ),
        )


def _found(result: Computed | ModelError | None) -> dict[str, Any]:
    if isinstance(result, Computed) and result.error is None:
        return dict(result.value)
    return {"texts": [], "indices": []}
