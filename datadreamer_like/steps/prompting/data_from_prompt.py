"""Rows from a single instruction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.output import BATCH_SIZE, Batch

from .prompt_step import PromptStep, RowPrompt


class DataFromPrompt(PromptStep):
    """Sends one instruction `n` times, for a different answer each time.

    Args: `instruction`, `n`, `temperature` (1.0), `top_p` (1.0), and those of `PromptStep`. Outputs: `prompts`,
    `generations`, and a column for each property of `output_schema`.
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_data_args()
        self.register_prompt_outputs()

    def register_data_args(self) -> None:
        """Registers the arguments of steps that make data from an instruction."""
        self.register_llm()
        self.register_arg("instruction", type=str, help="What the LLM is to write.")
        self.register_arg("n", type=int, help="How many rows to make.")
        for name in ("temperature", "top_p"):
            what = "0 makes all answers to a prompt the same."
            self.register_arg(name, required=False, default=1.0, type=float, help=what)

    def num_prompts(self) -> int:
        """Returns the number of rows to make."""
        return int(self.args["n"])

    def warn_of_repetition(self, distinct: int) -> None:
        """Warns if answers must repeat, with `distinct` prompts: greedy decoding gives one answer per prompt."""
        if distinct < self.args["n"] and not (self.args["temperature"] and self.args["top_p"]):
            self.logger.warning("%s: a prompt has one answer if temperature or top_p is 0, so rows repeat.", self.name)

    def input_batches(self) -> Iterator[Batch]:
        """Yields the instruction `n` times."""
        self.warn_of_repetition(1)
        for start in range(0, self.num_prompts(), BATCH_SIZE):
            yield {"instruction": [self.args["instruction"]] * min(BATCH_SIZE, self.num_prompts() - start)}

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns the instruction for each row."""
        return batch["instruction"]

    def configure(self) -> None:
        """Rejects a number of rows below 1."""
        super().configure()
        if self.num_prompts() < 1:
            raise DefinitionError(f'"{self.name}": argument "n" is {self.num_prompts()}; expected at least 1 row.')
