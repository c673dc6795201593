"""Rows kept or dropped by an LLM's judgement."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import compress
from typing import Any

from ..base.columns import columns_of, whole_rows, whole_schema
from ..base.lazy_rows import From, LazyRowBatches, Traced
from ..base.row_answers import Portion, answered
from .answer_readers import read_yes_or_no
from .process_with_prompt import ProcessWithPrompt

logger = logging.getLogger("datadreamer_like")


class JudgeRows(ProcessWithPrompt):
    """Base of steps that judge each row by one of its columns and keep all of its columns."""

    def setup(self) -> None:
        """Registers what such steps share; the outputs are the columns of the input's step."""
        self.register_input("inputs", help="The column to judge by. All columns of its step are kept.")
        self.register_instruction()
        self.register_output("*", help="All columns of the step that the inputs come from.")

    def judged(self) -> Iterator[Portion]:
        """Yields the LLM's answers with whole rows, in one pass over them."""
        column = self._inputs["inputs"]
        name = column.column_names[0]

        def portions() -> Iterator[Portion]:
            for batch in whole_rows(column):
                yield self.prompts(batch[name]), batch

        total = self.num_prompts()
        count = 0
        for answers, rows in answered(portions(), self.generate):
            count += len(answers)
            self.usage.note = f"{count:,}{'' if total is None else f' of {total:,}'} judged"
            yield answers, rows
        self.usage.note = ""

    def full_instruction(self) -> str:
        """Returns the instruction, with how to answer where the answer is read by this step and not said in it."""
        instruction = super().full_instruction()
        return instruction if self._says_how_to_answer(instruction) else f"{instruction} {self._how_to_answer}"

    _how_to_answer = ""

    def _says_how_to_answer(self, instruction: str) -> bool:
        return not self._how_to_answer

    def _checked_outputs(self, given: dict[str, str]) -> dict[str, str]:
        spec = self._output_specs.pop("*")
        added = self._output_specs
        self._output_specs = {name: spec for name in columns_of(self._inputs["inputs"])} | added
        return super()._checked_outputs(given)


class FilterWithPrompt(JudgeRows):
    """Keeps the rows to which an LLM says yes.

    Inputs: `inputs`. Args: `llm`, `instruction`, `filter_func` (takes an answer, or a list of them where n > 1, and
    tells whether to keep the row), `input_label`, `instruction_label`, `max_new_tokens`, `sep`, `post_process`, `lazy`,
    and the options of `llm.run`. Outputs: all columns of the step that the inputs come from.

    Without a `filter_func`, answers are read as yes or no (`n > 1`: the majority; a tie keeps the row). A row whose
    answer is missing or says neither is dropped; the log says how many there were.
    """

    _how_to_answer = "Answer with one word: yes or no."

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        self.register_arg(
            "filter_func",
            required=False,
            help="A function of an answer that tells whether to keep the row.",
            default_help="reads a yes or a no",
        )

    def run(self) -> LazyRowBatches:
        """Asks the LLM about every row."""
        self.register_facts()
        return LazyRowBatches(self._kept, save=not self.args["lazy"], like=whole_schema(self._inputs["inputs"]))

    def _kept(self) -> Iterator[Traced]:
        keep: Callable[[Any], Any] = self.args["filter_func"] or _majority
        counts: Counter[str] = Counter()
        for answers, rows in self.judged():
            verdicts = [None if answer is None else keep(answer) for answer in answers]
            start = counts["rows"]
            counts["rows"] += len(verdicts)
            counts["missing"] += answers.count(None)
            counts["unreadable"] += verdicts.count(None) - answers.count(None)
            if any(verdicts):
                kept = list(compress(range(start, start + len(verdicts)), verdicts))
                yield Traced(
                    {name: list(compress(values, verdicts)) for name, values in rows.items()}, From("inputs", kept)
                )
        if counts["missing"] or counts["unreadable"]:
            logger.warning(
                "%s: of %s rows, %s got no answer and %s one that says neither yes nor no; they were dropped.",
                self.name, *(f"{counts[what]:,}" for what in ("rows", "missing", "unreadable")),
            )  # fmt: skip

    def _says_how_to_answer(self, instruction: str) -> bool:
        words = {word.lower() for word in re.findall(r"\w+", instruction)}
        return self.args["filter_func"] is not None or {"yes", "no"} <= words


def _majority(answer: Any) -> bool | None:
    verdicts = [read_yes_or_no(text) for text in (answer if isinstance(answer, list) else [answer])]
    yes, no = verdicts.count(True), verdicts.count(False)
    return yes >= no if yes or no else None
