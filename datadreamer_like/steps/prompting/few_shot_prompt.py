"""Inputs answered after the pattern of examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datadreamer_like.errors import EmptyDataset

from ..base.row_answers import Portion, columns_together
from .prompt_step import PromptStep, labelled


class FewShotPrompt(PromptStep):
    """Shows an LLM examples of inputs and outputs, then each input.

    Inputs: `input_examples`, `output_examples`, `inputs`. Args: `llm`, `input_label`, `output_label`, `max_new_tokens`,
    `instruction` (stands first), `sep`, `min_in_context_examples`, `max_in_context_examples`, `post_process`, `lazy`,
    and the options of `llm.run`. Outputs: `inputs`, `prompts`, `generations`.

    As many examples are shown, in their order, as fit the model's context with `max_new_tokens` left for the answer. A
    row for which not even `min_in_context_examples` fit fails and holds None.
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("input_examples", help="Inputs of the examples.")
        self.register_input("output_examples", help="Outputs of the examples.")
        self.register_input("inputs", help="What is to be answered.")
        self.register_llm()
        self.register_arg("input_label", required=False, default="Input:", type=str, help="Stands before an input.")
        self.register_arg("output_label", required=False, default="Output:", type=str, help="Stands before an output.")
        self.register_arg("max_new_tokens", required=False, type=int, help="Most tokens of an answer.")
        self.register_arg("instruction", required=False, type=str, help="Stands before the examples.")
        self.register_arg("sep", required=False, default="\n", type=str, help="Stands between the parts of a prompt.")
        self.register_arg("min_in_context_examples", required=False, type=int, help="Fewest examples.")
        self.register_arg("max_in_context_examples", required=False, type=int, help="Most examples.")
        self.register_output("inputs", help="The inputs.")
        self.register_prompt_outputs()

    def num_prompts(self) -> int | None:
        """Returns how many inputs there are."""
        return self._inputs["inputs"].num_rows

    def examples(self) -> tuple[list[str], list[str]]:
        """Returns the examples' inputs, and the examples as they stand in a prompt.

        One that misses its input or output is left out.

        Raises:
            EmptyDataset: There is no whole one.
        """
        columns = {name: self._inputs[name] for name in ("input_examples", "output_examples")}
        pairs = [
            (str(given), wanted)
            for batch in columns_together(columns, f'"{self.name}"')
            for given, wanted in zip(*batch.values(), strict=True)
            if given is not None and wanted is not None
        ]
        if not pairs:
            raise EmptyDataset(f'"{self.name}": there are no examples. Give columns with at least one full pair.')
        before, between = self.args["input_label"], f"{self.args['sep']}{labelled(self.args['output_label'], '')}"
        return [given for given, _ in pairs], [f"{labelled(before, given)}{between}{wanted}" for given, wanted in pairs]

    def prompt(self, index: int, value: Any, examples: list[str]) -> str | None:
        """Returns the prompt for one input, or None where it is missing or not even the fewest examples fit."""
        if value is None:
            return None
        question = labelled(self.args["input_label"], value)
        return self.fitted(
            index,
            lambda: self.args["llm"].format_prompt(
                max_new_tokens=self.args["max_new_tokens"],
                beg_instruction=self.args["instruction"],
                in_context_examples=examples,
                end_instruction=self.args["sep"].join(part for part in (question, self.args["output_label"]) if part),
                sep=self.args["sep"],
                min_in_context_examples=self.args["min_in_context_examples"],
                max_in_context_examples=self.args["max_in_context_examples"],
            ),
        )

    def prompted(self) -> Iterator[Portion]:
        """Yields each input after the examples."""
        _, examples = self.examples()
        index = 0
        for batch in columns_together({"inputs": self._inputs["inputs"]}, f'"{self.name}"'):
            prompts = [self.prompt(index + i, value, examples) for i, value in enumerate(batch["inputs"])]
            index += len(prompts)
            yield prompts, {**batch, "prompts": prompts}
