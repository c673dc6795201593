"""Sending existing prompts unchanged."""

from __future__ import annotations

from collections.abc import Sequence

from datadreamer_like.graph.output import Batch

from .prompt_step import PromptStep, RowPrompt


class Prompt(PromptStep):
    """Sends each prompt to an LLM.

    Inputs: `prompts`. Args: those of `PromptStep`. Outputs: `prompts`, `generations`.
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("prompts", help="The prompts.")
        self.register_llm()
        self.register_prompt_outputs()

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns the prompts."""
        return batch["prompts"]
