"""Rows scored, cut and sorted by an LLM's judgement."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.output import Batch
from datadreamer_like.storage.tables import TableWriter, open_table

from ..base.returned import LazyRowBatches
from ..base.row_answers import columns_of
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
        rows = self._sorted if self.args["sort"] else self._scored
        return LazyRowBatches(rows, total_num_rows=total, save=not self.args["lazy"])

    def _scored(self) -> Iterator[Batch]:
        threshold = self.args["score_threshold"]
        count = unscored = 0
        for answers, rows in self.judged():
            scores = [_score(answer) for answer in answers]
            count += len(scores)
            unscored += scores.count(None)
            rows = {**rows, "scores": scores}
            if threshold is not None:
                kept = [index for index, score in enumerate(scores) if score is not None and score >= threshold]
                rows = {name: [values[index] for index in kept] for name, values in rows.items()}
            if rows["scores"]:
                yield rows
        if unscored:
            logger.warning("%s: %s of %s rows got no score.", self.name, f"{unscored:,}", f"{count:,}")

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
