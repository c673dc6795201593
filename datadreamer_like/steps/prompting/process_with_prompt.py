"""One instruction applied to every row."""

from __future__ import annotations

from collections.abc import Iterator

from ..base.row_answers import Portion
from .prompt_step import PromptStep, labelled


class ProcessWithPrompt(PromptStep):
    """Has an LLM process each input as an instruction says.

    Inputs: `inputs`. Args: `llm`, `instruction`, `input_label`, `instruction_label`, `max_new_tokens`, `sep`,
    `post_process`, `lazy`, and the options of `llm.run`. Outputs: `inputs`, `prompts`, `generations`.

    A prompt is `"{input_label} {input}{sep}{instruction_label} {instruction}"`.
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("inputs", help="What is to be processed.")
        self.register_instruction()
        self.register_output("inputs", help="The inputs.")
        self.register_prompt_outputs()

    def register_instruction(self) -> None:
        """Registers the arguments that make a prompt of an input."""
        self.register_llm()
        self.register_arg("instruction", type=str, help="What to do with each input.")
        self.register_arg("input_label", required=False, default="Input:", type=str, help="Stands before the input.")
        self.register_arg(
            "instruction_label",
            required=False,
            default="Instruction:",
            type=str,
            help="Stands before the instruction.",
        )
        self.register_arg("max_new_tokens", required=False, type=int, help="Most tokens of an answer.")
        self.register_arg("sep", required=False, default="\n\n", type=str, help="Stands between input and instruction.")

    def full_instruction(self) -> str:
        """Returns the instruction as it is sent."""
        return str(self.args["instruction"])

    def prompts(self, inputs: list[object]) -> list[str | None]:
        """Returns the prompts for some inputs; an input that is None has none."""
        before = labelled(self.args["input_label"], "")
        after = self.args["sep"] + labelled(self.args["instruction_label"], self.full_instruction())
        return [None if value is None else f"{before}{value}{after}" for value in inputs]

    def prompted(self) -> Iterator[Portion]:
        """Yields each input with the instruction."""
        for batch in self.input_batches():
            prompts = self.prompts(batch["inputs"])
            yield prompts, {**batch, "prompts": prompts}
