"""Lengths of texts in a model's tokens."""

from __future__ import annotations

from datadreamer_like.graph.rows import Batch
from datadreamer_like.models.llms.llm import LLM

from ..base.columns import check_texts
from ..base.step import Step


class CountTokens(Step):
    """Counts the tokens of texts, as an LLM's tokenizer cuts them.

    Inputs: `texts`. Args: `llm`, `lazy`. Outputs: `texts`, `num_tokens` (None for a missing text).

    Nothing is sent to the LLM. Where its tokenizer is not at hand, as with most APIs, `LLM.count_tokens` estimates from
    above, so a filter on the counts keeps prompts within the context window.

    Example:
        >>> counted = CountTokens("Lengths", inputs={"texts": rows.output["text"]}, args={"llm": llm})  # doctest: +SKIP
        >>> short = counted.filter(lambda row: row["num_tokens"] <= 512)  # doctest: +SKIP
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("texts", help="The texts.")
        self.register_arg("llm", type=LLM, help="The LLM whose tokens are counted.")
        self.register_arg("lazy", required=False, default=False, type=bool, help="Generate the rows lazily.")
        self.register_output("texts", help="The texts.")
        self.register_output("num_tokens", help="Their tokens.")

    def process(self, batch: Batch) -> Batch:
        """Counts the tokens of each text."""
        check_texts(batch["texts"], self._inputs["texts"].column_names[0], f'"{self.name}"')
        count = self.args["llm"].count_tokens
        return {**batch, "num_tokens": [None if text is None else count(text) for text in batch["texts"]]}
