"""Applying one instruction to every row."""

from __future__ import annotations

from collections.abc import Sequence

from datadreamer_like.graph.output import Batch

from .cell_text import cell_text
from .prompt_step import PromptStep, RowPrompt


class ProcessWithPrompt(PromptStep):
    """Has an LLM process each input by an instruction.

    Inputs: `inputs`. Args: `instruction`, `input_label`, `instruction_label`, `max_new_tokens`, `sep`, and those of
    `PromptStep`. Outputs: `inputs`, `prompts`, `generations`.

    A prompt is `"{input_label} {input}{sep}{instruction_label} {instruction}"`.

    Example:
        >>> args = {"llm": llm, "instruction": "Summarise the text in one sentence."}  # doctest: +SKIP
        >>> short = ProcessWithPrompt("Summaries", inputs={"inputs": rows.output["text"]}, args=args)  # doctest: +SKIP
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("inputs", help="What is to be processed.")
        self.register_instruction()
        self.register_output("inputs", help="The inputs.")
        self.register_prompt_outputs()

    def register_instruction(self) -> None:
        """Registers the arguments of the prompt."""
        self.register_llm()
        self.register_arg("instruction", type=str, help="What to do with each input.")
        self.register_format("\n\n", input_label="Input:", instruction_label="Instruction:")

    def full_instruction(self) -> str:
        """Returns the instruction to send."""
        return str(self.args["instruction"])

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns each input with the instruction; an input that is None has no prompt."""
        before = self.labelled("input_label", "")
        after = self.args["sep"] + self.labelled("instruction_label", self.full_instruction())
        return [None if value is None else f"{before}{cell_text(value)}{after}" for value in batch["inputs"]]
