"""Prompts that are there already, sent as they are."""

from __future__ import annotations

from collections.abc import Iterator

from ..base.row_answers import Portion
from .prompt_step import PromptStep


class Prompt(PromptStep):
    """Sends each prompt to an LLM.

    Inputs: `prompts`. Args: `llm`, `post_process`, `lazy`, and the options of `llm.run`. Outputs: `prompts`,
    `generations`.
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("prompts", help="The prompts.")
        self.register_llm()
        self.register_prompt_outputs()

    def prompted(self) -> Iterator[Portion]:
        """Yields the prompts."""
        for batch in self.input_batches():
            yield batch["prompts"], batch
