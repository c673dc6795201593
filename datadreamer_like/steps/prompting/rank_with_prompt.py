"""Scoring, filtering and sorting rows by an LLM's judgement."""

from __future__ import annotations

import re
from collections.abc import Iterator
from statistics import fmean
from typing import Any, cast

import pyarrow as pa

from datadreamer_like.graph.rows import Rows, untyped
from datadreamer_like.storage.values import to_batch

from ..base.columns import whole_schema
from ..base.lazy_rows import From, LazyRowBatches, Traced
from ..operations.sorting import sorted_positions
from ..operations.transforms import materialized
from .answer_readers import read_number
from .filter_with_prompt import JudgeRows


class RankWithPrompt(JudgeRows):
    """Has an LLM give each row a score, and sorts by it.

    Inputs: `inputs`. Args: `instruction`, `sort` (True), `reverse` (True: the highest first), `score_threshold` (rows
    below it are dropped), `input_label`, `instruction_label`, `max_new_tokens`, `sep`, and those of `PromptStep`
    (`post_process` may turn an answer into the score). Outputs: all columns of the step that the inputs come from,
    `scores`, and a column for each property of `output_schema`.

    A score is the number in the answer (`n > 1`: the mean); with `output_schema`, its only numeric property. Rows
    without a score have None, come last, and do not pass a threshold; `step.errors` holds them by position among the
    inputs.
    """

    how_to_answer = "Answer with one number and nothing else."
    schema_types = ("number", "integer")

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        self.register_arg("sort", required=False, default=True, type=bool, help="Sort the rows by their scores.")
        self.register_arg("reverse", required=False, default=True, type=bool, help="Put the highest score first.")
        self.register_arg("score_threshold", required=False, type=float, help="Rows with a lower score are dropped.")
        self.register_output("scores", help="The scores.")

    def run(self) -> LazyRowBatches:
        """Prompts the LLM for every row."""
        self.register_facts()
        total = self.num_prompts() if self.args["score_threshold"] is None else None
        known = whole_schema(self._inputs["inputs"])
        return LazyRowBatches(self.result_batches, total_num_rows=total, save=not self.args["lazy"], like=known)

    def result_batches(self) -> Iterator[Traced]:
        """Yields the rows with their scores, sorted if `sort`."""
        return self._sorted() if self.args["sort"] else self._scored()

    def verdict(self, said: Any) -> float | None:
        """Reads a score."""
        return read_number(said)

    def combine(self, values: list[Any]) -> Any:
        """Returns the mean of several scores."""
        return fmean(value for value in values if value is not None)

    def _scored(self) -> Iterator[Traced]:
        threshold = self.args["score_threshold"]
        start = 0
        for rows in self.judged():
            scores = self.values(rows)
            batch = {**rows.rows, "scores": scores, **self.field_columns(rows)}
            kept = list(range(len(scores)))
            if threshold is not None:
                kept = [index for index, score in enumerate(scores) if score is not None and score >= threshold]
                batch = {name: [values[index] for index in kept] for name, values in batch.items()}
            if kept:
                yield Traced(batch, From("inputs", [start + index for index in kept]))
            start += len(scores)

    def _sorted(self) -> Iterator[Traced]:
        # Only scores and positions are held in memory, not rows.
        positions: list[Any] = []
        known = whole_schema(self._inputs["inputs"])

        def read() -> Iterator[pa.RecordBatch]:
            for scored in self._scored():
                positions.extend(cast(list[int], scored.sources[0].rows))
                yield to_batch(scored.value, f'"{self.name}"', known)

        table = materialized(Rows(untyped(self._output_specs), None, read)).table
        assert table is not None
        order = sorted_positions(table, ["scores"], [self.args["reverse"]])
        place = 0
        for batch in table.select(order).batches():
            taken = order[place : place + batch.num_rows]
            yield Traced(batch, From("inputs", [positions[row] for row in taken]))
            place += batch.num_rows

    def says_how_to_answer(self, instruction: str) -> bool:
        """Whether the instruction asks for a number, or `post_process` makes one."""
        return self.args["post_process"] is not None or re.search(r"\bnumber\b", instruction, re.IGNORECASE) is not None
