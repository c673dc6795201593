"""Rows scored, cut and sorted by an LLM's judgement."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import pyarrow as pa

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.rows import Batch, Rows, untyped
from datadreamer_like.storage.values import to_batch

from ..base.columns import columns_of, whole_schema
from ..base.lazy_rows import From, LazyRowBatches, Traced
from ..operations.sorting import sorted_positions
from ..operations.transforms import kept
from .answer_readers import read_number
from .filter_with_prompt import JudgeRows

logger = logging.getLogger("datadreamer_like")


class RankWithPrompt(JudgeRows):
    """Has an LLM give each row a score, and sorts by it.

    Inputs: `inputs`. Args: `llm`, `instruction`, `sort` (True), `reverse` (True: the highest first), `score_threshold`
    (rows below it are dropped), `input_label`, `instruction_label`, `max_new_tokens`, `sep`, `post_process` (may turn
    an answer into the score), `lazy`, and the options of `llm.run`. Outputs: all columns of the step that the inputs
    come from, and `scores`.

    A score is the number that the answer gives (`n > 1`: the mean). A row without one has None, goes last, and does not
    pass a threshold; the log says how many there were.
    """

    _how_to_answer = "Answer with one number and nothing else."

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        self.register_arg("sort", required=False, default=True, type=bool, help="Sort the rows by their scores.")
        self.register_arg("reverse", required=False, default=True, type=bool, help="Put the highest score first.")
        self.register_arg("score_threshold", required=False, type=float, help="Rows with a lower score are dropped.")
        self.register_output("scores", help="The scores.")

    def run(self) -> LazyRowBatches:
        """Asks the LLM about every row."""
        self.register_facts()
        total = self.num_prompts() if self.args["score_threshold"] is None else None
        return LazyRowBatches(
            self._sorted if self.args["sort"] else self._scored,
            total_num_rows=total,
            save=not self.args["lazy"],
            like=whole_schema(self._inputs["inputs"]),
        )

    def _scored(self) -> Iterator[Traced]:
        for batch, positions in self._kept_batches():
            yield Traced(batch, From("inputs", positions))

    def _sorted(self) -> Iterator[Traced]:
        # However many rows there are, only their scores and positions are held in memory.
        positions: list[int] = []
        known = whole_schema(self._inputs["inputs"])

        def read() -> Iterator[pa.RecordBatch]:
            for batch, kept_positions in self._kept_batches():
                positions.extend(kept_positions)
                yield to_batch(batch, f'"{self.name}"', known)

        table = kept(Rows(untyped([*known.names, "scores"]), None, read)).table
        assert table is not None
        order = sorted_positions(table, ["scores"], [self.args["reverse"]])
        place = 0
        for batch in table.select(order).batches():
            taken = order[place : place + batch.num_rows]
            yield Traced(batch, From("inputs", [positions[row] for row in taken]))
            place += batch.num_rows

    def _kept_batches(self) -> Iterator[tuple[Batch, list[int]]]:
        """Yields the rows that pass the threshold, with their scores, and their positions among the inputs."""
        threshold = self.args["score_threshold"]
        count = unscored = 0
        for answers, rows in self.judged():
            scores = [_score(answer) for answer in answers]
            chosen = list(range(len(scores)))
            if threshold is not None:
                chosen = [index for index, score in enumerate(scores) if score is not None and score >= threshold]
            if chosen:
                batch = {name: [values[index] for index in chosen] for name, values in rows.items()}
                yield {**batch, "scores": [scores[index] for index in chosen]}, [count + index for index in chosen]
            count += len(scores)
            unscored += scores.count(None)
        if unscored:
            logger.warning("%s: %s of %s rows got no score.", self.name, f"{unscored:,}", f"{count:,}")

    def _says_how_to_answer(self, instruction: str) -> bool:
        return self.args["post_process"] is not None or re.search(r"\bnumber\b", instruction, re.IGNORECASE) is not None

    def _checked_outputs(self, given: dict[str, str]) -> dict[str, str]:
        if "scores" in columns_of(self._inputs["inputs"]):
            raise DefinitionError(
                f'"{self.name}": the step of its inputs has a column "scores" already. Rename that column first: '
                'step.rename_column("scores", "earlier_scores").'
            )
        return super()._checked_outputs(given)


def _score(answer: Any) -> float | None:
    scores = [read_number(text) for text in (answer if isinstance(answer, list) else [answer])]
    found = [score for score in scores if score is not None]
    return fmean(found) if found else None
