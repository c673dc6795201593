"""Retrieval-augmented generation: retrieved texts in the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from datadreamer_like.errors import ModelError
from datadreamer_like.graph.origin import From
from datadreamer_like.graph.output import Batch
from datadreamer_like.models.retrievers.retriever import Retriever

from ..base.row_answers import AnsweredRows
from ..retrieval.retrieve import from_corpus, retrieved
from .prompt_step import PromptStep, RowPrompt


class RAGPrompt(PromptStep):
    """Puts retrieved texts before each prompt.

    Inputs: `prompts`. Args: `retriever`, `k` (5), `beg_instruction` (comes first), `retrieved_text_label`,
    `prompt_label`, `max_new_tokens`, `sep`, `min_in_context_retrieved_texts`, `max_in_context_retrieved_texts`, and
    those of `PromptStep`. Outputs: `prompts` (as sent), `generations`.

    Texts are shown best first, as many as fit the model's context with `max_new_tokens` left for the answer. A row
    fails, and holds None, if `min_in_context_retrieved_texts` (by default 1 of those found) do not fit; with 0 it is
    asked without texts.

    Example:
        >>> args = {"llm": llm, "retriever": retriever, "k": 2}  # doctest: +SKIP
        >>> answers = RAGPrompt("Answers", inputs={"prompts": questions.output["text"]}, args=args)  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 3  # 3: at least one text

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("prompts", help="The questions.")
        self.register_llm()
        self.register_arg("retriever", type=Retriever, help="Finds texts for a question.")
        self.register_arg("k", required=False, default=5, type=int, help="How many texts to retrieve.")
        self.register_arg("beg_instruction", required=False, type=str, help="Before the texts.")
        self.register_format("\n", retrieved_text_label="Document:", prompt_label="Question:")
        self.register_arg("min_in_context_retrieved_texts", required=False, type=int, help="Fewest texts.")
        self.register_arg("max_in_context_retrieved_texts", required=False, type=int, help="Most texts.")
        self.register_prompt_outputs()

    def input_batches(self) -> Iterator[Batch]:
        """Yields the questions, each with the texts found for it, or the error, and their positions."""
        found = retrieved(super().input_batches(), "prompts", self.args["retriever"], self.args["k"])
        for batch, texts, positions in found:
            yield {**batch, "texts": texts, "positions": positions}

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns each question after its retrieved texts."""
        return [self._prompt(*row) for row in zip(batch["prompts"], batch["texts"], strict=True)]

    def origin(self, rows: AnsweredRows) -> Sequence[From]:
        """Returns the questions' rows, and the documents that each prompt shows."""
        return [*super().origin(rows), *from_corpus(self.args["retriever"], self.shown(rows))]

    def register_facts(self) -> None:
        """Adds the retriever to the card too."""
        super().register_facts()
        self.register_data_card("Retriever", self.args["retriever"].display_name)

    def _prompt(self, question: str, texts: list[str] | ModelError | None) -> RowPrompt:
        if texts is None or isinstance(texts, ModelError):
            return texts
        beginning, sep = self.args["beg_instruction"], self.args["sep"]
        prompt = self.fitted(
            beg_instruction=None if beginning is None else beginning + sep,
            in_context_examples=[self.labelled("retrieved_text_label", text) for text in texts],
            end_instruction=sep + self.labelled("prompt_label", question),
            min_in_context_examples=self.args["min_in_context_retrieved_texts"],
            max_in_context_examples=self.args["max_in_context_retrieved_texts"],
        )
        return prompt.removeprefix(sep) if isinstance(prompt, str) else prompt
