"""Reranking by an LLM, which says whether a text answers a query."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, Self

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, ModelError

from ..llms.llm import LLM
from ..task_models.task_model import TextRun
from .reranker import Reranker
from .retriever import Retriever

PROMPT = "Does the document answer the query? Answer yes or no.\n\nQuery: {query}\n\nDocument: {text}\n\nAnswer:"


class LLMReranker(Reranker):
    """Sorts the texts that a retriever finds by an LLM's probability of "yes" against "no"; nothing is generated.

    The score is P(yes) / (P(yes) + P(no)) as the start of the answer, from 0 to 1. Scores are cached as answers are. A
    query fails if one of its prompts does not fit the LLM's context.

    Args:
        retriever: Finds the texts to sort.
        llm: An LLM with `score`: `LlamaCPP`, `HFTransformers`, or a server that returns a prompt's log-probabilities.
        depth: Texts to sort for each query; `k` if that is more.
        prompt: A text with `{query}` and `{text}`. The LLM's chat template is applied to it.
        answers: The texts for yes and no, in the language of the prompt.

    Raises:
        ArgumentTypeError: `llm` is not an LLM, or `prompt` or `answers` are not texts.
        DefinitionError: The LLM gives no log-probabilities of given texts, or the prompt lacks a placeholder.

    References:
        Nogueira et al. 2020, arXiv:2003.06713 (probabilities of two words); Liang et al. 2022, arXiv:2211.09110 (yes
        and no, without training).

    Example:
        >>> best = LLMReranker(BM25Retriever(texts), LlamaCPP("model.gguf"), depth=20)  # doctest: +SKIP
        >>> best.run(["How do I parse dates?"], k=3)  # doctest: +SKIP
    """

    def __init__(
        self,
        retriever: Retriever,
        llm: LLM,
        depth: int = 20,
        prompt: str = PROMPT,
        answers: tuple[str, str] = ("yes", "no"),
    ) -> None:
        super().__init__(retriever, depth)
        if not isinstance(llm, LLM):
            raise ArgumentTypeError(f"llm must be an LLM, such as LlamaCPP(...), not {llm!r:.100}.")
        if not isinstance(prompt, str):
            raise ArgumentTypeError(f"prompt must be a text, not {prompt!r:.100}.")
        if not {"{query}", "{text}"} <= {*re.findall(r"\{\w+\}", prompt)}:
            raise DefinitionError(f"prompt is {prompt!r}; it must contain {{query}} and {{text}}.")
        if isinstance(answers, str) or len(answers) != 2 or not all(isinstance(each, str) and each for each in answers):
            raise ArgumentTypeError(f'answers must be two texts, such as ("yes", "no"), not {answers!r:.100}.')
        llm.check_scoring()
        self.llm = self._source = llm
        self.model_name = llm.model_name
        self.prompt = prompt
        self.answers = answers

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns a reranker of three texts with an LLM, for tests and documentation."""
        from .bm25_retriever import BM25Retriever

        return cls(BM25Retriever.example(), model, depth=3)

    def identity(self) -> dict[str, Any]:
        """Returns the retriever, the LLM and what it is asked."""
        return {**super().identity(), "llm": self.llm, "prompt": self.prompt, "answers": list(self.answers)}

    def score_pairs(self, pairs: Iterable[tuple[str, str]], run: TextRun) -> Iterator[float | ModelError]:
        """Yields P(yes) / (P(yes) + P(no)) of each pair."""
        parts = re.split(r"(\{query\}|\{text\})", self.prompt)
        prompts = (
            "".join({"{query}": query, "{text}": text}.get(part, part) for part in parts) for query, text in pairs
        )
        # A model that continues a plain text has tokens that start with a blank.
        blank = "" if self.llm.scores_chat or self.prompt[-1:].isspace() else " "
        options = {name: value for name, value in asdict(run).items() if name != "total_num_texts"}
        for row in self.llm.scores(prompts, [blank + answer for answer in self.answers], **options):
            if row.error is not None:
                yield row.error
                continue
            yes, no = row.logprobs
            yield 1 / (1 + math.exp(min(no - yes, 700.0)))

    def unload_model(self) -> None:
        """Frees the memory of the LLM and of the retriever."""
        self.llm.unload_model()
        super().unload_model()
