"""Few-shot prompting with fixed examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from datadreamer_like.errors import EmptyDataset
from datadreamer_like.graph.output import Batch

from ..base.columns import columns_together
from ..base.lazy_rows import From
from ..base.row_answers import AnsweredRows
from .prompt_step import PromptStep, RowPrompt
from .prompt_text import labelled, shown_positions


class FewShotPrompt(PromptStep):
    """Shows an LLM examples of inputs and outputs, followed by each input.

    Inputs: `input_examples`, `output_examples`, `inputs`. Args: `input_label`, `output_label`, `max_new_tokens`,
    `instruction` (comes first), `sep`, `min_in_context_examples`, `max_in_context_examples`, and those of `PromptStep`.
    Outputs: `inputs`, `prompts`, `generations`, and a column for each property of `output_schema`.

    Examples are shown in order, as many as fit the model's context with `max_new_tokens` left for the answer. A row
    fails, and holds None, if `min_in_context_examples` do not fit.
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("input_examples", help="Inputs of the examples.")
        self.register_input("output_examples", help="Outputs of the examples.")
        self.register_input("inputs", help="What is to be answered.")
        self.register_llm()
        self.register_arg("input_label", required=False, default="Input:", type=str, help="Before an input.")
        self.register_arg("output_label", required=False, default="Output:", type=str, help="Before an output.")
        self.register_arg("max_new_tokens", required=False, type=int, help="Most tokens of an answer.")
        self.register_arg("instruction", required=False, type=str, help="Before the examples.")
        self.register_arg("sep", required=False, default="\n", type=str, help="Between the parts of a prompt.")
        self.register_arg("min_in_context_examples", required=False, type=int, help="Fewest examples.")
        self.register_arg("max_in_context_examples", required=False, type=int, help="Most examples.")
        self.register_output("inputs", help="The inputs.")
        self.register_prompt_outputs()

    def num_prompts(self) -> int | None:
        """Returns the number of inputs."""
        return self._inputs["inputs"].num_rows

    def examples(self) -> tuple[list[str], list[str], list[int]]:
        """Returns the examples' inputs, their texts in a prompt, and their positions in the columns.

        Examples without input or output are skipped.

        Raises:
            EmptyDataset: There is no complete example.
        """
        pairs = [
            (str(given), wanted, row)
            for row, (given, wanted) in enumerate(self._pairs())
            if given is not None and wanted is not None
        ]
        if not pairs:
            raise EmptyDataset(f'"{self.name}": there are no examples. Give columns with at least one complete pair.')
        before, between = self.args["input_label"], f"{self.args['sep']}{labelled(self.args['output_label'], '')}"
        texts = [f"{labelled(before, given)}{between}{wanted}" for given, wanted, _ in pairs]
        return [given for given, _, _ in pairs], texts, [row for _, _, row in pairs]

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        columns = {name: self._inputs[name] for name in ("input_examples", "output_examples")}
        for batch in columns_together(columns, f'"{self.name}"'):
            yield from zip(*batch.values(), strict=True)

    def prompt(self, value: Any, examples: list[str]) -> RowPrompt:
        """Returns the prompt for one input; None for a missing input, an error where the fewest examples do not fit."""
        if value is None:
            return None
        question = labelled(self.args["input_label"], value)
        return self.fitted(
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

    def input_batches(self) -> Iterator[Batch]:
        """Yields the inputs, each with the examples to show."""
        _, examples, positions = self.examples()
        for batch in columns_together({"inputs": self._inputs["inputs"]}, f'"{self.name}"'):
            size = len(batch["inputs"])
            yield {**batch, "examples": [examples] * size, "example_rows": [positions] * size}

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns each input after its examples."""
        return [self.prompt(*row) for row in zip(batch["inputs"], batch["examples"], strict=True)]

    def origin(self, rows: AnsweredRows) -> Sequence[From]:
        """Returns the inputs' rows, and the examples that each prompt shows."""
        texts = [[] if isinstance(examples, Exception) else examples for examples in rows.rows["examples"]]
        found = shown_positions(rows.values, texts, rows.rows["example_rows"])
        examples = [From(name, found, role="example") for name in ("input_examples", "output_examples")]
        return [From("inputs"), *examples]
