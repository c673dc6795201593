"""Filtering, scoring and sorting rows by an LLM's judgement."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import DefinitionError, ModelError, RejectedAnswer
from datadreamer_like.graph.origin import From, Traced
from datadreamer_like.graph.output import Batch
from datadreamer_like.graph.plan import Forecast
from datadreamer_like.graph.rows import Rows, untyped
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Answer
from datadreamer_like.storage.values import to_batch

from ..base.columns import whole
from ..base.lazy_rows import LazyRowBatches
from ..operations.sorting import sorted_positions
from ..operations.transforms import table_of
from .answer_readers import read_number, read_yes_or_no
from .process_with_prompt import ProcessWithPrompt
from .prompt_step import RowPrompt
from .value_column import shown

# Column of the positions among the inputs, while rows are sorted.
_POSITION = "\0position"


class JudgeRows(ProcessWithPrompt):
    """Base of steps that judge rows by one column and output all columns."""

    result_version: ClassVar[int] = 2

    verdict: ClassVar[staticmethod[[object], Any]]
    """Returns the verdict in a text or in a function's result; None if it cannot be read."""

    how_to_answer: ClassVar[str]
    """Added to an instruction that lacks one of `answer_words`, unless a function of the script reads the answer."""

    answer_words: ClassVar[frozenset[str]]

    schema_types: ClassVar[tuple[str, ...]]
    """JSON types of the one property of `output_schema` that is the verdict."""

    verdict_func: ClassVar[str] = "parse"
    """The argument with a function that returns the verdict, so that the step does not read it."""

    verdict_output: ClassVar[str | None] = None
    """Name of the output column of verdicts, if there is one."""

    def setup(self) -> None:
        """Registers the shared names; the outputs are the columns of the input's step."""
        self.register_input("inputs", help="The column to judge by. All columns of its step are kept.")
        self.register_instruction()
        self.register_output("*", help="All columns of the step that the inputs come from.")
        if self.verdict_output is not None:
            self.register_output(self.verdict_output, help="The verdicts.")

    def configure(self) -> None:
        """Registers the columns of the input's step as outputs."""
        columns = whole(self._inputs["inputs"]).column_names
        for name in columns:
            if name in self._output_specs:
                raise DefinitionError(
                    f'"{self.name}": the step of its inputs already has a column "{name}". Rename that column first: '
                    f'step.rename_column("{name}", "earlier_{name}").'
                )
        self.replace_output("*", columns)
        super().configure()
        if self.schema is not None and self._reads_verdicts():
            self.verdict_field = self.schema.only_field(self.schema_types, self.name, "is the verdict")

    def keeps(self, verdict: Any) -> bool:
        """Returns whether a row with this verdict is kept; the verdict is None if there is none."""
        return bool(verdict)

    def run(self) -> LazyRowBatches:
        """Prompts the LLM for every row."""
        return replace(super().run(), total_num_rows=None, like=whole(self._inputs["inputs"]).rows.schema)

    def forecast(self) -> Forecast:
        """Returns what running the step takes; how many rows it keeps is unknown."""
        return replace(super().forecast(), rows=None)

    def result_batches(self) -> Iterator[Traced]:
        """Yields the kept rows, and reports progress."""
        total = self.num_prompts()
        start = 0
        for rows in self.answered():
            verdicts = self.values(rows)
            kept = [self.keeps(verdict) for verdict in verdicts]
            positions = list(compress(range(start, start + len(kept)), kept))
            start += len(kept)
            self.usage.note = f"{start:,}{'' if total is None else f' of {total:,}'} judged"
            columns = {**rows.rows, **self.field_columns(rows)}
            if self.verdict_output is not None:
                columns[self.verdict_output] = verdicts
            if positions:
                batch = {name: list(compress(values, kept)) for name, values in columns.items()}
                yield Traced(batch, From("inputs", positions))
        self.usage.note = ""

    def input_batches(self) -> Iterator[Batch]:
        """Yields all columns of the input's step."""
        return whole(self._inputs["inputs"]).batches()

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns the prompt for each row."""
        return super().prompts({"inputs": batch[self._inputs["inputs"].column_names[0]]})

    def prompt_at(self, position: int) -> RowPrompt:
        """Returns the prompt for the inputs' row at a position, which `trace` shows."""
        (prompt,) = self.prompts(whole(self._inputs["inputs"]).rows.values_at(position))
        return None if isinstance(prompt, ModelError) else prompt

    def parse(self, answer: Answer, row: dict[str, Any]) -> Any:
        """Returns the verdict in an answer; an unreadable answer is rejected."""
        return self.value_of(self.read(answer), row)

    def value_of(self, said: Any, row: dict[str, Any], alone: bool = False) -> Any:
        """Returns the verdict in a result of `read`; an unreadable one is rejected."""
        if isinstance(said, Rejected) or not self._reads_verdicts():
            return said
        verdict = self.verdict(said)
        return Rejected(f"No verdict can be read in it. {self.how_to_answer}") if verdict is None else verdict

    def full_instruction(self) -> str:
        """Returns the instruction, with `how_to_answer` where it is needed."""
        instruction = super().full_instruction()
        needed = self.schema is None and self._reads_verdicts()
        complete = self.answer_words <= set(re.findall(r"\w+", instruction.lower()))
        return f"{instruction} {self.how_to_answer}" if needed and not complete else instruction

    def _reads_verdicts(self) -> bool:
        return self._args["parse"] is None and self._args[self.verdict_func] is None


class FilterWithPrompt(JudgeRows):
    """Keeps the rows for which an LLM answers yes.

    Inputs: `inputs`. Args: `instruction`, `filter_func` (takes an answer's text, or a list of texts where n > 1, and
    returns whether to keep the row), `input_label`, `instruction_label`, `max_new_tokens`, `sep`, and those of
    `PromptStep`. Outputs: all columns of the step that the inputs come from.

    `filter_func` returns something true or false; a text is read as yes or no, since "no" is true in Python.

    Without a `filter_func` or `parse`, answers are read as yes or no (`n > 1`: the majority; a tie keeps the row); with
    `output_schema`, its only boolean property is the verdict, and `filter_func` takes a dictionary. Rows with missing
    or unreadable answers are dropped; `step.errors` holds them by position among the inputs, not in the output.

    Example:
        >>> args = {"llm": llm, "instruction": "Is the text about chess?"}  # doctest: +SKIP
        >>> kept = FilterWithPrompt("About chess", inputs={"inputs": rows.output["text"]}, args=args)  # doctest: +SKIP
    """

    verdict = staticmethod(read_yes_or_no)
    how_to_answer = "Answer with one word: yes or no."
    answer_words = frozenset({"yes", "no"})
    schema_types = ("boolean",)
    verdict_func = "filter_func"

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        what = "A function of an answer that returns whether to keep the row."
        self.register_arg("filter_func", required=False, help=what, default_help="reads a yes or a no")

    def configure(self) -> None:
        """Rejects `filter_func` together with `parse`."""
        super().configure()
        if self._args["filter_func"] is not None and self._args["parse"] is not None:
            raise DefinitionError(f'"{self.name}": give filter_func or parse, not both.')

    def value_of(self, said: Any, row: dict[str, Any], alone: bool = False) -> Any:
        """Returns whether to keep the row; with `n > 1`, an element of `filter_func`'s list."""
        said = super().value_of(said, row)
        if isinstance(said, Rejected) or self._args["filter_func"] is None or not (alone or self.num_answers == 1):
            return said
        return self.call("filter_func", said)

    def combine(self, values: list[Any]) -> Any:
        """Returns whether to keep a row with several answers."""
        if self._args["filter_func"] is not None:
            return self.call("filter_func", values)
        votes = [bool(value) for value in values if value is not None]
        return 2 * sum(votes) >= len(votes)

    def call(self, name: str, *values: Any) -> Any:
        """Calls a function given as an argument; a row fails if its result is neither true nor false."""
        value = super().call(name, *values)
        if name == "post_process" or isinstance(value, Rejected):
            return value
        if (keeps := _truth(value)) is None:
            text = values[0].text if isinstance(values[0], Answer) else str(values[0])
            raise RejectedAnswer.of(text, f"{name} returned {shown(value)}; expected True or False.")
        return keeps


class RankWithPrompt(JudgeRows):
    """Has an LLM give each row a score, and sorts by it.

    Inputs: `inputs`. Args: `instruction`, `sort` (True), `reverse` (True: the highest first), `score_threshold` (rows
    below it are dropped), `input_label`, `instruction_label`, `max_new_tokens`, `sep`, and those of `PromptStep`
    (`post_process` may turn an answer into the score, and `parse` must return it). Outputs: all columns of the step
    that the inputs come from, and `scores`.

    A score is the number in the answer (`n > 1`: the mean); with `output_schema`, its only numeric property. Rows
    without a score have None and come last: `step.errors` has the positions in the output. A threshold drops them: then
    these are positions among the inputs.

    Example:
        >>> args = {"llm": llm, "instruction": "How useful is this, from 0 to 10?"}  # doctest: +SKIP
        >>> best = RankWithPrompt("Useful", inputs={"inputs": rows.output["text"]}, args=args)  # doctest: +SKIP
    """

    verdict = staticmethod(read_number)
    how_to_answer = "Answer with one number and nothing else."
    answer_words = frozenset({"number"})
    schema_types = ("number", "integer")
    verdict_output = "scores"

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        self.register_arg("sort", required=False, default=True, type=bool, help="Sort the rows by their scores.")
        self.register_arg("reverse", required=False, default=True, type=bool, help="Put the highest score first.")
        self.register_arg("score_threshold", required=False, type=float, help="Rows with a lower score are dropped.")

    def configure(self) -> None:
        """Refuses a threshold that no score reaches."""
        super().configure()
        threshold = self._args["score_threshold"]
        if threshold is not None and math.isnan(threshold):
            raise DefinitionError(
                f'"{self.name}": score_threshold is {threshold}; it must be a number to compare with.'
            )

    def keeps(self, verdict: Any) -> bool:
        """Returns whether a score reaches the threshold."""
        threshold = self._args["score_threshold"]
        return threshold is None or (verdict is not None and verdict >= threshold)

    def combine(self, values: list[Any]) -> Any:
        """Returns the mean of several scores."""
        scores = [value for value in values if value is not None]
        return fmean(scores) if scores else None

    def call(self, name: str, *values: Any) -> Any:
        """Calls a function given as an argument; a row fails if `parse` returns anything but a number or None."""
        value = super().call(name, *values)
        if name != "parse" or isinstance(value, Rejected | None):
            return value
        score = None if isinstance(value, str) else read_number(value)
        if score is None:
            raise RejectedAnswer.of(values[0].text, f"parse returned {value!r}; a score must be a number.")
        return score

    def full_instruction(self) -> str:
        """Returns the instruction; unchanged where `post_process` reads the answer."""
        return super().full_instruction() if self.args["post_process"] is None else str(self.args["instruction"])

    def run(self) -> LazyRowBatches:
        """Prompts the LLM for every row."""
        total = self.num_prompts() if self._args["score_threshold"] is None else None
        return replace(super().run(), total_num_rows=total)

    def result_batches(self) -> Iterator[Traced]:
        """Yields the rows with their scores, sorted if `sort`."""
        if not self._args["sort"]:
            yield from super().result_batches()
            return
        # Rows are sorted in a file, not in memory, together with their positions.
        known = whole(self._inputs["inputs"]).rows.schema
        scored = super().result_batches()

        def read() -> Iterator[pa.RecordBatch]:
            for rows in scored:
                yield to_batch({**rows.value, _POSITION: rows.sources[0].rows}, f'"{self.name}"', known)

        table = table_of(Rows(untyped([*self._output_specs, _POSITION]), None, read))
        order = sorted_positions(table, ["scores"], [self._args["reverse"]])
        if self._args["score_threshold"] is None:
            self.usage.move_failures(np.argsort(order).tolist())
        for batch in table.select(order).batches():
            positions = From("inputs", batch.column(_POSITION).to_pylist())
            yield Traced(batch.drop_columns([_POSITION]), positions)


def _truth(value: Any) -> bool | None:
    """Returns whether a function's result is true; None if it is neither true nor false."""
    if isinstance(value, str):
        return read_yes_or_no(value)
    if isinstance(value, Mapping | tuple):  # (False, "why") would be true
        return None
    try:
        return None if value != value else bool(value)
    except Exception:  # arrays, and missing values of pandas
        return None
