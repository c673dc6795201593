"""Filtering rows by an LLM's judgement."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any, ClassVar

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.output import Batch
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Answer

from ..base.columns import columns_of, whole_rows, whole_schema
from ..base.lazy_rows import From, LazyRowBatches, Traced
from ..base.row_answers import AnsweredRows
from .answer_readers import read_yes_or_no
from .process_with_prompt import ProcessWithPrompt
from .prompt_step import RowPrompt

logger = logging.getLogger("datadreamer_like")


class JudgeRows(ProcessWithPrompt):
    """Base of steps that judge rows by one column and output all columns.

    A subclass reads verdicts in `verdict` and `combine`, and yields rows in `result_batches`.
    """

    how_to_answer: ClassVar[str] = ""
    """Added to an instruction that does not specify the form of the answer."""

    schema_types: ClassVar[tuple[str, ...]] = ()
    """JSON types of the one property of `output_schema` that is the verdict."""

    def setup(self) -> None:
        """Registers the shared names; the outputs are the columns of the input's step."""
        self.register_input("inputs", help="The column to judge by. All columns of its step are kept.")
        self.register_instruction()
        self.register_output("*", help="All columns of the step that the inputs come from.")

    def configure(self) -> None:
        """Registers the columns of the input's step as outputs."""
        columns = columns_of(self._inputs["inputs"])
        for name in columns:
            if name in self._output_specs:
                raise DefinitionError(
                    f'"{self.name}": the step of its inputs already has a column "{name}". Rename that column first: '
                    f'step.rename_column("{name}", "earlier_{name}").'
                )
        self.replace_output("*", columns)
        super().configure()
        if self.schema is not None and self.reads_verdicts():
            self.verdict_field = self.schema.only_field(self.schema_types, self.name, "is the verdict")

    def reads_verdicts(self) -> bool:
        """Whether the step, not a function of the script, reads the verdict in an answer."""
        return self._args["parse"] is None

    def verdict(self, said: Any) -> Any:
        """Returns the verdict in a text or in a function's result; None if it cannot be read."""
        raise NotImplementedError(f"{type(self).__name__} has no verdict().")

    def input_batches(self) -> Iterator[Batch]:
        """Yields all columns of the input's step."""
        return whole_rows(self._inputs["inputs"])

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns the prompt for each row."""
        return super().prompts({"inputs": batch[self._inputs["inputs"].column_names[0]]})

    def parse(self, answer: Answer, row: dict[str, Any]) -> Any:
        """Returns the verdict in an answer; an unreadable answer is rejected."""
        said = self.read(answer)
        if isinstance(said, Rejected) or not self.reads_verdicts():
            return said
        if self.schema is not None:
            said = said[self.verdict_field]
        verdict = self.verdict(said)
        return Rejected(f"No verdict can be read in it. {self.how_to_answer}") if verdict is None else verdict

    def judged(self) -> Iterator[AnsweredRows]:
        """Yields rows with their answers, and reports progress."""
        total = self.num_prompts()
        count = 0
        for rows in self.answered():
            count += len(rows.answers)
            self.usage.note = f"{count:,}{'' if total is None else f' of {total:,}'} judged"
            yield rows
        self.usage.note = ""

    def full_instruction(self) -> str:
        """Returns the instruction; with `how_to_answer` if this step reads the answer and the instruction lacks it."""
        instruction = super().full_instruction()
        incomplete = self.schema is None and self.reads_verdicts() and not self.says_how_to_answer(instruction)
        return f"{instruction} {self.how_to_answer}" if incomplete else instruction

    def says_how_to_answer(self, instruction: str) -> bool:
        """Whether an instruction specifies the form of the answer."""
        return False


class FilterWithPrompt(JudgeRows):
    """Keeps the rows for which an LLM answers yes.

    Inputs: `inputs`. Args: `instruction`, `filter_func` (takes an answer's text, or a list of texts where n > 1, and
    returns whether to keep the row), `input_label`, `instruction_label`, `max_new_tokens`, `sep`, and those of
    `PromptStep`. Outputs: all columns of the step that the inputs come from, and a column for each property of
    `output_schema`.

    Without a `filter_func` or `parse`, answers are read as yes or no (`n > 1`: the majority; a tie keeps the row); with
    `output_schema`, its only boolean property is the verdict, and `filter_func` takes a dictionary. Rows with missing
    or unreadable answers are dropped; `step.errors` holds them by position among the inputs.
    """

    how_to_answer = "Answer with one word: yes or no."
    schema_types = ("boolean",)

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        self.register_arg(
            "filter_func",
            required=False,
            help="A function of an answer that returns whether to keep the row.",
            default_help="reads a yes or a no",
        )

    def configure(self) -> None:
        """Rejects `filter_func` together with `parse`."""
        super().configure()
        if self._args["filter_func"] is not None and self._args["parse"] is not None:
            raise DefinitionError(f'"{self.name}": give filter_func or parse, not both.')

    def run(self) -> LazyRowBatches:
        """Prompts the LLM for every row."""
        self.register_facts()
        known = whole_schema(self._inputs["inputs"])
        return LazyRowBatches(self.result_batches, save=not self.args["lazy"], like=known)

    def result_batches(self) -> Iterator[Traced]:
        """Yields the kept rows."""
        start = 0
        for rows in self.judged():
            kept = self.values(rows)
            if any(kept):
                columns = {**rows.rows, **self.field_columns(rows)}
                positions = list(compress(range(start, start + len(kept)), kept))
                batch = {name: list(compress(values, kept)) for name, values in columns.items()}
                yield Traced(batch, From("inputs", positions))
            start += len(kept)

    def reads_verdicts(self) -> bool:
        """Whether the step, not a function of the script, reads yes or no."""
        return super().reads_verdicts() and self._args["filter_func"] is None

    def verdict(self, said: Any) -> bool | None:
        """Reads yes or no."""
        return read_yes_or_no(said)

    def parse(self, answer: Answer, row: dict[str, Any]) -> Any:
        """Returns whether to keep the row; with `n > 1`, an element of `filter_func`'s list."""
        said = super().parse(answer, row)
        if isinstance(said, Rejected) or self._args["filter_func"] is None or self.num_answers != 1:
            return said
        return self.call("filter_func", said)

    def combine(self, values: list[Any]) -> Any:
        """Returns whether to keep a row with several answers."""
        if self._args["filter_func"] is not None:
            return self.call("filter_func", values)
        votes = [bool(value) for value in values if value is not None]
        return 2 * sum(votes) >= len(votes)

    def says_how_to_answer(self, instruction: str) -> bool:
        """Whether the instruction contains the words yes and no."""
        return {"yes", "no"} <= {word.lower() for word in re.findall(r"\w+", instruction)}
