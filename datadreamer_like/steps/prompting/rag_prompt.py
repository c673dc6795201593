"""Questions answered with retrieved texts at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datadreamer_like.models.retrievers.retriever import Retriever

from ..base.row_answers import Portion, answered
from .prompt_step import PromptStep, labelled


class RAGPrompt(PromptStep):
    """Puts the texts that a retriever finds for each prompt before it.

    Inputs: `prompts`. Args: `llm`, `retriever`, `k` (5), `retrieved_text_label`, `prompt_label`, `max_new_tokens`,
    `sep`, `min_in_context_retrieved_texts`, `max_in_context_retrieved_texts`, `post_process`, `lazy`, and the options
    of `llm.run`. Outputs: `prompts` (as they were sent), `generations`.

    As many texts are shown, the best first, as fit the model's context with `max_new_tokens` left for the answer. A row
    for which not even `min_in_context_retrieved_texts` fit fails and holds None.
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("prompts", help="The questions.")
        self.register_llm()
        self.register_arg("retriever", type=Retriever, help="Finds texts for a question.")
        self.register_arg("k", required=False, default=5, type=int, help="How many texts to retrieve.")
        self.register_arg(
            "retrieved_text_label", required=False, default="Document:", type=str, help="Stands before each text."
        )
        self.register_arg("prompt_label", required=False, default="Question:", type=str, help="Before the question.")
        self.register_arg("max_new_tokens", required=False, type=int, help="Most tokens of an answer.")
        self.register_arg("sep", required=False, default="\n", type=str, help="Stands between texts and question.")
        self.register_arg("min_in_context_retrieved_texts", required=False, type=int, help="Fewest texts.")
        self.register_arg("max_in_context_retrieved_texts", required=False, type=int, help="Most texts.")
        self.register_prompt_outputs()

    def prompted(self) -> Iterator[Portion]:
        """Yields each question after the texts found for it."""
        index = 0
        portions = ((batch["prompts"], batch) for batch in self.input_batches())
        for found, batch in answered(portions, self._retrieve):
            prompts = []
            for question, result in zip(batch["prompts"], found, strict=True):
                prompts.append(None if result is None else self._prompt(index, question, result["texts"]))
                index += 1
            yield prompts, {"prompts": prompts}

    def register_facts(self) -> None:
        """Notes the retriever too."""
        super().register_facts()
        self.register_data_card("Retriever", self.args["retriever"].display_name)

    def _retrieve(self, questions: Iterator[Any]) -> Iterator[Any]:
        yield from self.args["retriever"].run(questions, k=self.args["k"], return_generator=True)

    def _prompt(self, index: int, question: str, texts: list[str]) -> str | None:
        return self.fitted(
            index,
            lambda: self.args["llm"].format_prompt(
                max_new_tokens=self.args["max_new_tokens"],
                in_context_examples=[labelled(self.args["retrieved_text_label"], text) for text in texts],
                end_instruction=labelled(self.args["prompt_label"], question),
                sep=self.args["sep"],
                min_in_context_examples=self.args["min_in_context_retrieved_texts"],
                max_in_context_examples=self.args["max_in_context_retrieved_texts"],
            ),
        )
