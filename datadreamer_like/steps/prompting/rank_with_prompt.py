"""Rows scored, cut and sorted by an LLM's judgement."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from datadreamer_like.graph.output import Batch
from datadreamer_like.storage.tables import TableWriter, open_table

from ..base.returned import LazyRowBatches
from .answer_readers import read_number
from .filter_with_prompt import JudgeRows


class RankWithPrompt(JudgeRows):
    """Has an LLM give each row a score, and sorts by it.

    Inputs: `inputs`. Args: `instruction`, `sort` (True), `reverse` (True: the highest first), `score_threshold` (rows
    below it are dropped), `input_label`, `instruction_label`, `max_new_tokens`, `sep`, and those of `PromptStep`
    (`post_process` may turn an answer into the score). Outputs: all columns of the step that the inputs come from,
    `scores`, and a column for each property of `output_schema`.

    A score is the number that the answer gives (`n > 1`: the mean); with `output_schema`, its only property that is a
    number. A row without one has None, goes last, and does not pass a threshold; `step.errors` holds them by their
    positions among the inputs.
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
        return LazyRowBatches(self.result_batches, total_num_rows=total, save=not self.args["lazy"])

    def result_batches(self) -> Iterator[Batch]:
        """Yields the rows with their scores, sorted if they are to be."""
        return self._sorted() if self.args["sort"] else self._scored()

    def verdict(self, said: Any) -> float | None:
        """Reads a score."""
        return read_number(said)

    def combine(self, values: list[Any]) -> Any:
        """Returns the mean of several scores."""
        return fmean(value for value in values if value is not None)

    def _scored(self) -> Iterator[Batch]:
        threshold = self.args["score_threshold"]
        for rows in self.judged():
            scores = self.values(rows)
            batch = {**rows.rows, "scores": scores, **self.field_columns(rows)}
            if threshold is not None:
                kept = [index for index, score in enumerate(scores) if score is not None and score >= threshold]
                batch = {name: [values[index] for index in kept] for name, values in batch.items()}
            if batch["scores"]:
                yield batch

    def _sorted(self) -> Iterator[Batch]:
        # However many rows there are, only their scores are held in memory.
        with tempfile.TemporaryDirectory(prefix="datadreamer_like-") as folder:
            writer = TableWriter(Path(folder), list(self._output_specs), f'"{self.name}"')
            scores: list[float | None] = []
            for batch in self._scored():
                writer.write(batch)
                scores.extend(batch["scores"])
            writer.close(self.fingerprint)
            sign = -1.0 if self.args["reverse"] else 1.0
            order = sorted(range(len(scores)), key=lambda index: (scores[index] is None, sign * (scores[index] or 0.0)))
            if order:
                yield from open_table(Path(folder)).select(order).iter(batch_size=1000)

    def says_how_to_answer(self, instruction: str) -> bool:
        """Whether the instruction asks for a number, or a function makes one of the answer."""
        return self.args["post_process"] is not None or re.search(r"\bnumber\b", instruction, re.IGNORECASE) is not None
