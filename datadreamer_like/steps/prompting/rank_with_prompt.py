"""Scoring and sorting rows by an LLM's judgement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from numbers import Real
from statistics import fmean
from typing import Any

import pyarrow as pa

from datadreamer_like.errors import RejectedAnswer
from datadreamer_like.graph.rows import Rows, untyped
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.storage.values import to_batch

from ..base.columns import whole_schema
from ..base.lazy_rows import From, LazyRowBatches, Traced
from ..operations.sorting import sorted_positions
from ..operations.transforms import materialized
from .answer_readers import read_number
from .filter_with_prompt import JudgeRows

_POSITION = "\0position"


class RankWithPrompt(JudgeRows):
    """Has an LLM give each row a score, and sorts by it.

    Inputs: `inputs`. Args: `instruction`, `sort` (True), `reverse` (True: the highest first), `score_threshold` (rows
    below it are dropped), `input_label`, `instruction_label`, `max_new_tokens`, `sep`, and those of `PromptStep`
    (`post_process` may turn an answer into the score, and `parse` must return it). Outputs: all columns of the step
    that the inputs come from, and `scores`.

    A score is the number in the answer (`n > 1`: the mean); with `output_schema`, its only numeric property. Rows
    without a score have None, come last, and do not pass a threshold; `step.errors` holds them by position among the
    inputs.
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
        if name == "parse" and not isinstance(value, Real | Rejected | None):
            raise RejectedAnswer.of(values[0].text, f"parse returned {value!r}; a score must be a number.")
        return value

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
        known = whole_schema(self._inputs["inputs"])
        scored = super().result_batches()

        def read() -> Iterator[pa.RecordBatch]:
            for rows in scored:
                yield to_batch({**rows.value, _POSITION: rows.sources[0].rows}, f'"{self.name}"', known)

        table = materialized(Rows(untyped([*self._output_specs, _POSITION]), None, read)).table
        assert table is not None
        for batch in table.select(sorted_positions(table, ["scores"], [self._args["reverse"]])).batches():
            positions = From("inputs", batch.column(_POSITION).to_pylist())
            yield Traced(batch.drop_columns([_POSITION]), positions)
